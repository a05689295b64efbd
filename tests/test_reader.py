"""A run in a notebook: what the ledger, `best` and `export` say, under names that a person guesses."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dse_monitor
from dse_monitor.errors import RunError

pytestmark = pytest.mark.fast

OLD = Path(__file__).parent / "data" / "old_run"


@pytest.fixture
def run():
    return dse_monitor.open_run(OLD / "exp1")


def test_the_run_or_its_output_folder_opens_it(run):
    assert dse_monitor.open_run(str(OLD / "exp1" / "dse")).evaluations == run.evaluations
    assert run.name == "exp1"


def test_a_folder_that_nobody_watched_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(RunError, match=r"was not watched: no records\.jsonl .* start dse-monitor watch"):
        dse_monitor.open_run(tmp_path)


def test_table_has_the_columns_and_values_of_the_exported_file(run):
    rows, exported = (
        run.table(),
        list(csv.DictReader((OLD / "expected" / "export.csv").read_text().splitlines())),
    )
    assert list(rows[0]) == list(exported[0])
    assert [str(row["path"]) for row in rows] == [row["path"] for row in exported]
    for row, known in zip(rows, exported, strict=True):
        assert known["dse"] == ("" if row["dse"] is None else str(row["dse"]))


def test_best_and_candidates_say_how_sure_they_are_and_where_the_file_is(run):
    first, second, third = run.candidates
    assert run.best.evaluation == first.evaluation
    assert (run.axis, first.at, second.at, third.at) == ("epoch", 2.0, 11.0, 7.0)
    assert first.behind == 0
    assert second.better == pytest.approx(0.324, abs=1e-3)
    assert first.evaluation.source.path == "checkpoint_0002.pth"
    assert first.dse == max(run.series.dse)


def test_alerts_and_maps_are_those_on_record(run):
    assert [(alert.kind, alert.status) for alert in run.alerts] == [("non-finite", "firing")]
    assert len(run.maps) == 16
    assert all(path.suffix == ".png" and path.is_file() for path in run.maps.values())


def test_it_introduces_itself(run, tmp_path):
    said = "16 checkpoints scored, best at epoch 2 with DSE +0.241 ± 0.011 at lambda 0.325"
    assert repr(run) == f"<Run exp1: {said}>"
    (tmp_path / "dse").mkdir()
    (tmp_path / "dse" / "records.jsonl").write_text("")
    empty = dse_monitor.open_run(tmp_path)
    assert "nothing scored yet" in repr(empty)
    assert empty.best is None
    assert empty.table() == []


def test_data_frame_where_there_is_pandas_and_a_word_where_there_is_none(run):
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "import dse_monitor\n"
        "dse_monitor.open_run(sys.argv[1]).to_pandas()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(OLD / "exp1")], capture_output=True, text=True)
    assert "pip install pandas, or use table()" in done.stderr
    pandas = pytest.importorskip("pandas")
    frame = run.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.set_index("path").loc["checkpoint_0002.pth", "dse"] == run.best.dse


def test_the_documented_lines_run():
    """docs/watching.md, "In a notebook", as it is written there."""
    text = (Path(__file__).parents[1] / "docs" / "watching.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    lines = block.replace('"runs/exp1"', repr(str(OLD / "exp1"))).splitlines()
    names = {}
    exec("\n".join(line for line in lines if "to_pandas" not in line), names)
    assert names["run"].best.at == 2
