"""A week in seconds: many checkpoints, written and rotated under a fake clock, leave no growth behind."""

import gc
import os
import threading

import pytest
from watch_fakes import FakeClock, Watching, write_checkpoint

from dse_monitor.watch.history import History


def _resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hundreds_of_rotated_checkpoints_leave_no_descriptors_threads_or_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    run = tmp_path / "exp1"
    clock = FakeClock()
    with Watching(clock, run) as watch:
        before = None
        for number in range(250):
            write_checkpoint(run / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=number)
            if number >= 5:
                (run / f"checkpoint{number - 5:04d}.pth").unlink()
            watch.step(6)
            watch.console.said.clear()
            watch.workers[:] = watch.workers[-2:]
            if number == 100:
                gc.collect()
                before = (_descriptors(), threading.active_count(), _resident())
        gc.collect()
        assert before is not None
        descriptors, threads, resident = before
        assert _descriptors() <= descriptors
        assert threading.active_count() <= threads
        assert _resident() - resident < 10 << 20
        assert len(watch.monitor.runs[run].history) == 250


def test_ten_thousand_evaluations_take_less_than_ten_megabytes(evaluation):
    history = History()
    gc.collect()
    before = _resident()
    for number in range(1, 10_001):
        path = f"checkpoints/checkpoint{number:06d}.pth"
        content = f"{number:064x}"
        history.append(
            evaluation(path, epoch=float(number), content=content, seq=number, wall_time=1e9 + number)
        )
    gc.collect()
    assert len(history) == 10_000
    assert _resident() - before < 10 << 20
