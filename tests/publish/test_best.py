"""best.json, the link and the kept files always tell the truth, also in the middle of a replacement."""

import json
import os

import pytest

from dse_monitor.metric.components import Components
from dse_monitor.publish.best import Keeper, describe, publish, readable_files
from dse_monitor.runs.record import Evaluation, Settings, Source
from dse_monitor.runs.series import Series

pytestmark = pytest.mark.fast

SETTINGS = Settings(images="f" * 12, num_images=8)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "exp1").mkdir()
    return tmp_path / "exp1"


def _line(run, scores, name="c{}.pth"):
    """A run whose checkpoint k has this score and lies on disk."""
    evaluations = []
    for number, score in enumerate(scores, 1):
        path = run / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(bytes([number]) * 100)
        parts = Components(m_inter=score, m_intra_image=0.0, m_intra_batch=0.0, m_dim=0.5)
        found = path.stat()
        source = Source(
            path=name.format(number), epoch=float(number), size=found.st_size, mtime=found.st_mtime
        )
        evaluations.append(
            Evaluation(status="scored", source=source, settings=SETTINGS, components=parts, seq=number)
        )
    return Series.from_evaluations(evaluations)


def _locate(run):
    return lambda evaluation: evaluation.source.path if (run / evaluation.source.path).exists() else None


def _keep(run, line, count=1, rolling=lambda name: False, **options):
    keeper = Keeper(run, run / "dse", count, rolling, **options)
    keeper.update(line, _locate(run))
    return keeper


def _names(run):
    folder = run / "dse" / "keep"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_best_file_names_candidates_and_the_link_leads_to_the_best(run):
    line = _line(run, [1.0, 3.0, 2.0])
    told = describe(run, line, _locate(run))
    publish(run / "dse", run, told)
    read = json.loads((run / "dse" / "best.json").read_text())
    assert (read["best"]["path"], read["best"]["epoch"], read["axis"], read["measured"]) == (
        "c2.pth",
        2.0,
        "epoch",
        3,
    )
    assert read["best"]["file"] == "c2.pth"
    link = run / "dse" / "best"
    assert os.readlink(link) == "../c2.pth"
    assert link.read_bytes() == bytes([2]) * 100


def test_best_that_is_gone_keeps_its_score_and_the_best_survivor_is_named(run):
    line = _line(run, [1.0, 3.0, 2.0])
    (run / "c2.pth").unlink()
    told = describe(run, line, _locate(run))
    publish(run / "dse", run, told)
    assert told["best"]["exists"] is False
    assert told["best"]["dse"] == pytest.approx(3.5)
    assert told["surviving"]["path"] == "c3.pth"
    assert os.readlink(run / "dse" / "best") == "../c3.pth"


def test_before_the_first_score_there_is_no_best_and_no_link(run):
    publish(run / "dse", run, describe(run, _line(run, []), _locate(run)))
    assert json.loads((run / "dse" / "best.json").read_text())["best"] is None
    assert not (run / "dse" / "best").is_symlink()


def test_kept_file_outlives_rotation_and_goes_when_it_is_no_longer_among_the_best(run):
    keeper = _keep(run, _line(run, [1.0, 3.0]))
    assert _names(run) == ["epoch2-c2.pth", "index.json"]
    assert (run / "dse/keep/epoch2-c2.pth").stat().st_ino == (run / "c2.pth").stat().st_ino  # costs nothing
    (run / "c2.pth").unlink()
    keeper.update(_line(run, [1.0, 3.0, 2.0]), _locate(run))
    kept = keeper.path(2)
    assert kept is not None
    assert kept.read_bytes() == bytes([2]) * 100
    keeper.update(_line(run, [1.0, 3.0, 2.0, 9.0]), _locate(run))
    assert _names(run) == ["epoch4-c4.pth", "index.json"]


def test_two_are_kept_when_two_are_wanted_and_none_when_none(run):
    line = _line(run, [5.0, 1.0, 1.0, 1.0, 1.0, 4.0])
    _keep(run, line, count=2)
    assert _names(run) == ["epoch1-c1.pth", "epoch6-c6.pth", "index.json"]
    other = run.parent / "other"
    other.mkdir()
    _keep(other, _line(other, [1.0]), count=0)
    assert _names(other) == []


def test_rolling_file_is_copied_and_survives_being_rewritten_in_place(run):
    line = _line(run, [1.0], name="checkpoint.pth")
    keeper = _keep(run, line, rolling=lambda name: name == "checkpoint.pth")
    with (run / "checkpoint.pth").open("r+b") as stream:
        stream.write(b"another version")
    kept = keeper.path(1)
    assert kept is not None
    assert kept.read_bytes() == bytes([1]) * 100


def test_kept_link_that_was_rewritten_in_place_is_not_offered_any_more(run):
    keeper = _keep(run, _line(run, [1.0]))
    (run / "c1.pth").write_bytes(b"another version")
    assert keeper.path(1) is None


def test_kept_files_are_known_after_a_restart_and_leftovers_removed(run):
    line = _line(run, [1.0, 3.0])
    _keep(run, line)
    (run / "dse/keep/.epoch9-c9.pth.part").write_text("half a copy")
    keeper = _keep(run, line)
    assert keeper.path(2) == run / "dse/keep/epoch2-c2.pth"
    assert _names(run) == ["epoch2-c2.pth", "index.json"]


def test_disk_budget_is_kept_and_said(run):
    keeper = _keep(run, _line(run, [1.0]), limit=50)
    assert _names(run) == []
    assert "limit" in keeper.problem


def test_copy_ends_when_the_watcher_is_asked_to(run):
    _keep(run, _line(run, [1.0]), rolling=lambda name: True, cancelled=lambda: True)
    assert not any("c1" in name for name in _names(run))


def test_folder_checkpoints_are_kept_file_by_file(run):
    line = _line(run, [1.0], name="step-1/__0_0.distcp")
    evaluation = line.evaluations[0]
    keeper = Keeper(run, run / "dse", 1, lambda name: False)
    keeper.update(line, lambda _: "step-1")
    assert (run / "dse/keep/epoch1-step-1/__0_0.distcp").read_bytes() == bytes([1]) * 100
    assert keeper.path(evaluation.seq) == run / "dse/keep/epoch1-step-1"


def test_files_for_scripts_are_those_that_were_measured(run):
    line = _line(run, [1.0, 3.0, 2.0])
    _keep(run, line)
    publish(run / "dse", run, describe(run, line, _locate(run)))
    (run / "c1.pth").write_text("rewritten since")
    (run / "c2.pth").unlink()
    files = readable_files(run / "dse", line.evaluations)
    assert files == [None, run / "dse/keep/epoch2-c2.pth", run / "c3.pth"]


def test_files_are_found_from_an_output_folder_elsewhere(run, tmp_path):
    line = _line(run, [1.0])
    publish(tmp_path / "out", run, describe(run, line, _locate(run)))
    assert readable_files(tmp_path / "out", line.evaluations) == [run / "c1.pth"]
    moved = run.rename(tmp_path / "exp2")
    publish(moved / "dse", run, describe(run, line, lambda _: None))
    assert readable_files(moved / "dse", line.evaluations) == [moved / "c1.pth"]
