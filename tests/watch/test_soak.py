"""A week in seconds: many checkpoints, written and rotated under a fake clock, leave no growth behind."""

import gc
import os
import threading
import tracemalloc

import pytest
from watch_fakes import FakeClock, Watching, write_checkpoint

from dse_monitor.runs.history import History

pytestmark = pytest.mark.fast


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
                before = (_descriptors(), threading.active_count())
                tracemalloc.start()
        gc.collect()
        assert before is not None
        descriptors, threads = before
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert _descriptors() <= descriptors
        assert threading.active_count() <= threads
        assert grown < 10 << 20
        assert len(watch.monitor.runs[run].history) == 250


def test_ten_thousand_evaluations_take_less_than_ten_megabytes(evaluation):
    history = History()
    tracemalloc.start()
    try:
        for number in range(1, 10_001):
            path = f"checkpoints/checkpoint{number:06d}.pth"
            content = f"{number:064x}"
            history.append(
                evaluation(path, epoch=float(number), content=content, seq=number, wall_time=1e9 + number)
            )
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(history) == 10_000
    assert taken < 10 << 20
