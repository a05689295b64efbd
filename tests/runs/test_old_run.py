"""A run that an earlier version watched is read, resumed, charted and exported as that version did.

tests/data/old_run holds a run as it was left (two calls of `watch --once`, a silence, a probe with labels)
and what that version said of it. What is stored never changes; a change of what is shown needs a line in the
changelog under "Numbers changed".
"""

import json
import shutil
from pathlib import Path

import pytest

from dse_monitor.evaluation import images
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.runs import export, ledger
from dse_monitor.runs.record import to_json

pytestmark = pytest.mark.fast

OLD = Path(__file__).parents[1] / "data" / "old_run"
EXPECTED = OLD / "expected"
CONFIG = EvaluationConfig(images=Path("/tmp/oldrun/lab/images"), num_images=64, batch=32)


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(OLD / "exp1", tmp_path / "exp1"))


def test_tables_are_the_same_to_the_last_byte(run, capsys):
    export.write_csv(run / "dse", None)
    assert capsys.readouterr().out == (EXPECTED / "export.csv").read_text()
    export.write_json(run / "dse", None)
    assert capsys.readouterr().out == (EXPECTED / "export.jsonl").read_text()


def test_the_best_checkpoint_is_the_same(run, capsys, monkeypatch):
    from dse_monitor.cli import main

    monkeypatch.chdir(run.parent)
    monkeypatch.setattr("sys.argv", ["dse-monitor", "best", "exp1", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    found, expected = json.loads(capsys.readouterr().out), json.loads((EXPECTED / "best.json").read_text())
    for candidate in (*found["candidates"], *expected["candidates"]):
        candidate.pop("file")  # a copied file has another time and so is not known to be the same
    assert found == expected


def test_the_same_request_has_the_same_digest():
    """Else every checkpoint of every run would be measured anew after an update."""
    asked = [fact.data["request"] for fact in ledger.read(OLD / "exp1" / "dse").facts if fact.kind == "watch"]
    assert set(asked) == {CONFIG.request} == {"a02abc15ac07"}


def test_settings_and_images_have_the_fingerprints_they_had(run):
    """Else nothing measured from now on could be compared with what was."""
    evaluations = ledger.read(run / "dse").evaluations
    (settings,) = {evaluation.settings for evaluation in evaluations if evaluation.settings is not None}
    assert {e.map_file.rpartition("-")[2] for e in evaluations if e.map_file} == {
        f"{settings.fingerprint[:6]}.png"
    }
    held_out = images.prepare(
        CONFIG.images, settings.preprocessing, num_images=64, cache=run / "dse" / "images"
    )
    assert held_out.fingerprint == settings.images  # served by the cache: the folder is gone
    first = json.loads((EXPECTED / "export.jsonl").read_text().splitlines()[0])
    assert to_json(settings).keys() == first["settings"].keys()


def test_nothing_is_measured_twice_and_new_checkpoints_join_the_line(run, watching, checkpoint):
    before = ledger.read(run / "dse").evaluations
    watch = watching(run, once=True, config=CONFIG)
    assert watch.run() in (0, 3)
    assert [job for worker in watch.workers for job in worker.jobs] == []
    checkpoint(run / "checkpoint_0019.pth", epoch=19.0)
    again = watching(run, once=True, config=CONFIG)
    again.run()
    assert [job["name"] for worker in again.workers for job in worker.jobs] == ["checkpoint_0019.pth"]
    after = ledger.read(run / "dse").evaluations
    assert after[: len(before)] == before
    assert after[-1].source.path == "checkpoint_0019.pth"
