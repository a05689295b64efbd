"""Tables for other programs hold what the ledger holds."""

import csv
import io
import json

import pytest
from watch_fakes import write_checkpoint

from dse_monitor.errors import OutputError, RunError
from dse_monitor.publish import rebuild
from dse_monitor.publish.published import published
from dse_monitor.runs import export, ledger
from dse_monitor.runs.locking import RunLock

pytestmark = pytest.mark.fast


@pytest.fixture
def output(tmp_path, watching):
    for number in range(4):
        path = tmp_path / "exp1" / f"checkpoint{number:04d}.pth"
        write_checkpoint(path, epoch=number + 1.0, value=number, m_inter=1.0 - 0.1 * number)
    (tmp_path / "exp1" / "note.pth").write_text("Nothing that anybody could take for a checkpoint. " * 3)
    assert watching(tmp_path / "exp1", once=True).run() == 3
    return tmp_path / "exp1" / "dse"


def test_csv_has_one_row_per_evaluation_with_dse_at_the_runs_lambda(output, tmp_path, capsys):
    export.write_csv(output, tmp_path / "table.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    scored = [row for row in rows if row["status"] == "scored"]
    assert [row["epoch"] for row in scored] == ["1.0", "2.0", "3.0", "4.0"]
    for row in scored:
        expected = float(row["separability"]) + float(row["lam"]) * float(row["m_dim"])
        assert float(row["dse"]) == pytest.approx(expected)
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert failed["dse"] == ""
    assert failed["reason"]
    export.write_csv(output, None)
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == rows


def test_json_lines_are_the_records(output, tmp_path):
    export.write_json(output, tmp_path / "table.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == [e.seq for e in ledger.read(output).evaluations]


def test_event_data_is_rebuilt_from_the_ledger(output):
    before = set(output.glob("events.out.tfevents.*"))
    assert rebuild.rebuild_events(output) == 5
    after = set(output.glob("events.out.tfevents.*"))
    assert before.isdisjoint(after)
    assert published(output).evaluations == {e.seq for e in ledger.read(output).evaluations}


def test_event_data_is_left_alone_while_a_watcher_writes(output):
    lock = RunLock(output)
    lock.take()
    try:
        with pytest.raises(RunError, match="watched"):
            rebuild.rebuild_events(output)
    finally:
        lock.release()


def test_missing_ledger_and_bad_target_are_explained(output, tmp_path):
    with pytest.raises(RunError, match="nothing was watched"):
        export.write_csv(tmp_path, None)
    with pytest.raises(OutputError, match="table"):
        export.write_csv(output, tmp_path / "no" / "table.csv")
