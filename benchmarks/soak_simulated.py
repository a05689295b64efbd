"""Weeks in minutes: ten thousand checkpoints written and rotated under a clock that jumps.

The whole watcher runs (scanner, settling, queue, ledger, event data, best checkpoint, alerts) with a worker
that answers at once. Checkpoints come one a minute, the newest five stay; now and then one is rewritten.
Printed are resident memory, descriptors and threads as the run grows, and the processor time each checkpoint
takes.

    python benchmarks/soak_simulated.py [--checkpoints 10000]

Judged from the first tenth on: at most 10 MB more at the end, no more descriptors or threads, and a
checkpoint of the last tenth at most half again as dear as one of the second; else the exit code is 1.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.watch import Stub, resident_mb, write_checkpoint
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.watch.console import Console
from dse_monitor.watch.monitor import Monitor
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.workers import memory

APART = 60.0  # seconds between two checkpoints, by the watcher's clock
STAY = 5  # checkpoints that are there at a time
REWRITTEN = 50  # every so many-th is written a second time
LIMIT = 10.0  # MB that memory may grow after the first tenth
DEARER = 1.5  # times the processor time of a checkpoint of the second tenth that one of the last may take


@dataclass
class Clock:
    """Stands still unless told."""

    now: float = 1000.0
    wall: float = 1_700_000_000.0

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return self.now

    def time(self) -> float:
        """Seconds since 1970."""
        return self.wall

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.wall += seconds


def main(checkpoints: int = 10_000) -> int:
    """Run and print.

    Args:
        checkpoints: how many are written in all.
    """
    folder = Path(tempfile.mkdtemp(prefix="dse-soak-"))
    os.fsync = lambda fd: None  # the disk is not what is looked at
    try:
        return soak(folder / "run", checkpoints)
    finally:
        shutil.rmtree(folder)


def soak(run: Path, checkpoints: int) -> int:
    """Write, watch, print; the exit code."""
    run.mkdir()
    clock = Clock()
    options = WatchOptions(
        runs=(run,),
        config=EvaluationConfig(images=Path("none")),
        maps=False,
        settle_seconds=2,
        poll_seconds=5,
    )
    found: list[tuple[float, int, int]] = []
    costs: list[float] = []
    print("| checkpoints | resident MB | descriptors | threads | ms of processor per checkpoint |")
    print("| --- | --- | --- | --- | --- |")
    with open(os.devnull, "w") as silence:
        monitor = Monitor(options, Console(silence, "plain"), make_worker=Stub, clock=clock)
        began, before = time.process_time(), 0
        for number in range(1, checkpoints + 1):
            write_checkpoint(run / f"checkpoint{number:05d}.pth")
            if number > STAY:
                (run / f"checkpoint{number - STAY:05d}.pth").unlink()
            if number % REWRITTEN == 0:
                write_checkpoint(run / f"checkpoint{number - 1:05d}.pth")
            end = clock.now + APART
            while clock.now < end:
                pause = monitor.step()
                clock.advance(min(max(pause or 0.0, 0.01), end - clock.now))
            if number % (checkpoints // 10) == 0:
                memory.release()
                state = (resident_mb(), len(os.listdir("/proc/self/fd")), threading.active_count())
                each = 1000 * (time.process_time() - began) / (number - before)
                found.append(state)
                costs.append(each)
                print(f"| {number:,} | {state[0]:.1f} | {state[1]} | {state[2]} | {each:.1f} |", flush=True)
                began, before = time.process_time(), number
        (watched,) = monitor.runs.values()
        scored = watched.history.count("scored")
        monitor.close()
    grown = found[-1][0] - found[0][0]
    print(f"\n{scored:,} scored; memory grew by {grown:.1f} MB after the first tenth (limit {LIMIT:g})")
    print(f"the last tenth took {costs[-1] / costs[1]:.2f} times as long as the second (limit {DEARER:g})")
    steady = found[-1][1] <= found[0][1] and found[-1][2] <= found[0][2]
    cheap = costs[-1] <= DEARER * costs[1]
    return 0 if grown < LIMIT and steady and cheap and scored >= checkpoints else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
