"""The loop as a whole: what is found is scored once, recorded, published and said."""

import json
import os

import pytest
from watch_fakes import FakeWorker

from dse_monitor.alerts import trace
from dse_monitor.runs import ledger
from dse_monitor.watch.console import Notice, Problem, Row

pytestmark = pytest.mark.fast


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


def test_what_a_worker_warns_of_is_shown_once(tmp_path, watching, checkpoint):
    class Grumbling(FakeWorker):
        def send(self, job):
            self.answers.append({"job": job["job"], "warning": "the layout 'x' cannot be used"})
            super().send(job)

    run = tmp_path / "exp1"
    for epoch in (1, 2):
        checkpoint(run / f"checkpoint{epoch}.pth", epoch=float(epoch), value=epoch)
    watch = watching(run, once=True, worker=Grumbling)
    assert watch.run() == 0
    assert len(ledger.read(run / "dse").evaluations) == 2
    assert [n.text for n in watch.console.of(Notice)] == ["the layout 'x' cannot be used"]


def test_worker_starts_while_a_whole_file_lies_still(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    with watching(run) as watch:
        watch.step(0.5)
        assert len(watch.workers) == 1
        assert watch.jobs == []
        watch.step(3)
        assert watch.jobs == ["checkpoint0000.pth"]
        assert len(watch.workers) == 1


def _asked(job):
    return {name: job[name] for name in ("config", "place")}


def test_worker_gets_ready_for_what_is_asked_and_the_last_images(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    with watching(run) as watch:
        watch.step(10)
        checkpoint(run / "checkpoint0001.pth", epoch=2.0, value=2)
        watch.step(10)
        first, second = watch.workers
        (order,) = first.orders
        assert order == {"prepare": _asked(first.jobs[0]), "images": None}  # nothing was measured before
        (order,) = second.orders
        settings = ledger.read(run / "dse").evaluations[0].settings
        assert order == {"prepare": _asked(second.jobs[0]), "images": settings.preprocessing.to_json()}


def test_no_worker_starts_for_another_name_of_what_is_scored(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    scored = checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    with watching(run) as watch:
        watch.step(10)
        os.link(scored, run / "best.pth")
        watch.step(10)
        assert len(watch.workers) == 1


def test_worker_that_was_started_for_nothing_ends(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    path = checkpoint(run / "checkpoint0000.pth", epoch=1.0)
    with watching(run) as watch:
        watch.step(0.5)
        path.unlink()
        watch.step(10)
        assert [worker.stopped for worker in watch.workers] == [True]
        assert watch.jobs == []


def test_a_start_judges_only_what_the_last_watcher_did_not(tmp_path, watching, checkpoint, monkeypatch):
    run = tmp_path / "exp1"
    for number in range(1, 13):
        checkpoint(run / f"checkpoint{number:04d}.pth", epoch=float(number), value=number)
    first = watching(run)
    first.step(20)
    first.monitor.close()
    assert (run / "dse" / "judged.json").exists()
    made, plain = [], trace.judge
    monkeypatch.setattr(trace, "judge", lambda *arguments: made.append(1) or plain(*arguments))
    second = watching(run)
    second.step(1)
    assert not made
    checkpoint(run / "checkpoint0013.pth", epoch=13.0, value=13)
    second.step(6)
    assert len(made) == 1
