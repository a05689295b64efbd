"""A run that an earlier version watched is drawn as that version drew it (see tests/runs/test_old_run.py)."""

import json
import math
import shutil
from pathlib import Path

import pytest

from dse_monitor.publish import rebuild
from dse_monitor.runs.record import FIRST_COLUMNS, POINT_COLUMNS

pytestmark = pytest.mark.fast

OLD = Path(__file__).parents[1] / "data" / "old_run"


def _plain(packed):
    """Header and columns of a reply as the JSON kept of it; NaN is None there."""
    header, columns = packed
    header.pop("version", None)  # changes with the process
    data = {name: [None if math.isnan(v) else v for v in column.tolist()] for name, column in columns.items()}
    return {**header, "data": data}


@pytest.mark.parametrize("rebuilt", [False, True], ids=["as-written", "rebuilt-from-the-ledger"])
def test_an_old_run_is_drawn_as_it_was(tmp_path, serve, rebuilt):
    run = Path(shutil.copytree(OLD / "exp1", tmp_path / "exp1"))
    expected = json.loads((OLD / "expected" / "tab.json").read_text())
    if rebuilt:
        assert rebuild.rebuild_events(run / "dse") == 18
    server = serve(tmp_path)
    server.wait_until_up()
    server.wait_for_rows("exp1/dse", 18)
    found = {
        "runs": server.get("runs").json()["runs"],
        "points": _plain(server.packed("points", run="exp1/dse")),
        "companions": _plain(server.packed("companions", run="exp1/dse")),
        "alerts": server.get("alerts", run="exp1/dse").json(),
        "scalars": server.get("scalars", run="exp1/dse").json(),
    }
    numbers = ",".join(str(int(seq)) for seq in found["points"]["data"]["seq"])
    # What a later version tells besides: nothing about this run, whose epochs are all known and distinct.
    header, columns = server.packed("line", run="exp1/dse")
    assert (header["axis"], header["aside"], header["notes"]) == ("epoch", [], [])
    assert columns["x"].tolist() == [float(epoch) for epoch in range(1, 17)]
    assert found["runs"][0]["state"].pop("notes", []) == []
    for told in (found["runs"][0]["state"], found["points"]):
        told["columns"] = told["columns"][:FIRST_COLUMNS]
    for name in POINT_COLUMNS[FIRST_COLUMNS:]:
        found["points"]["data"].pop(name)
    found["meta"] = server.get("meta", run="exp1/dse", seq=numbers).json()
    if rebuilt:  # a new file has its own first time, and says that nobody watches
        for runs in (found["runs"], expected["runs"]):
            runs[0].pop("start")
            runs[0]["state"].pop("watcher")
        named = next(item for item in expected["meta"] if item["path"] == "checkpoint_0016.pth")
        named["aliases"] = ["last.pth"]  # found after the record was published; the ledger knows it
    assert found == expected
