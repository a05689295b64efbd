"""The loop as a whole: what is found is scored once, recorded, published and said."""

import json

from dse_monitor.watch import ledger
from dse_monitor.watch.console import Problem, Row


def test_existing_checkpoints_are_scored_once_and_in_order(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    for epoch in (1, 2, 3):
        checkpoint(run / f"checkpoint{epoch - 1:04d}.pth", epoch=float(epoch), value=epoch)
    first = watching(run, once=True)
    assert first.run() == 0
    view = ledger.read(run / "dse")
    assert [e.source.epoch for e in view.evaluations] == [1.0, 2.0, 3.0]
    assert [row.x for row in first.console.of(Row)] == [1.0, 2.0, 3.0]
    second = watching(run, once=True)
    assert second.run() == 0
    assert second.jobs == []
    assert len(ledger.read(run / "dse").evaluations) == 3
    best = json.loads((run / "dse" / "best.json").read_text())
    assert best["best"]["epoch"] == 1.0


def test_checkpoint_that_appears_later_is_scored(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    watch = watching(run)
    watch.step(10)
    checkpoint(run / "checkpoint0001.pth", epoch=2.0, value=2)
    watch.step(10)
    assert watch.jobs == ["checkpoint0000.pth", "checkpoint0001.pth"]
    assert not watch.console.of(Problem)
