"""What it costs to work off the checkpoints of a run that was trained before anybody watched.

The whole watcher runs (scanner, settling, queue, ledger, event data, best checkpoint, alerts) beside so many
checkpoints, taken newest first, with a worker that answers at once. Printed is the watcher's own processor
time; nothing may grow faster than the number of checkpoints.

    python benchmarks/backlog.py [--checkpoints 1000 3000 10000]
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.watch import Stub, evaluation, resident_mb, write_checkpoint
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.runs.record import to_json
from dse_monitor.watch.console import Console
from dse_monitor.watch.monitor import Monitor
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.workers import memory


class Numbered(Stub):
    """Answers with the evaluation that belongs to the number in a file's name."""

    def send(self, job: dict[str, Any]) -> None:  # noqa: D102
        number = int(re.findall(r"\d+", job["name"])[-1])
        record = to_json(evaluation(job["name"], number))
        self._answers.append({"job": job["job"], "evaluation": record, "stamp": job["stamp"]})


def main(checkpoints: tuple[int, ...] = (1000, 3000, 10_000)) -> int:
    """Run and print.

    Args:
        checkpoints: how many there are.
    """
    os.fsync = lambda fd: None  # the disk is not what is looked at
    print("| checkpoints | processor s | ms per checkpoint | resident MB at the end |")
    print("| --- | --- | --- | --- |")
    for count in checkpoints:
        folder = Path(tempfile.mkdtemp(prefix="dse-backlog-"))
        try:
            taken = work_off(folder / "run", count)
        finally:
            shutil.rmtree(folder)
        print(f"| {count:,} | {taken:.1f} | {1000 * taken / count:.2f} | {resident_mb():.0f} |", flush=True)
    return 0


def work_off(run: Path, count: int) -> float:
    """Processor seconds until all are scored."""
    run.mkdir()
    for number in range(1, count + 1):
        write_checkpoint(run / f"checkpoint{number:05d}.pth")
    options = WatchOptions(
        runs=(run,), config=EvaluationConfig(images=Path("none")), maps=False, settle_seconds=0.0
    )
    with open(os.devnull, "w") as silence:
        monitor = Monitor(options, Console(silence, "plain"), make_worker=Numbered)
        began = time.process_time()
        while not monitor.runs or next(iter(monitor.runs.values())).history.count("scored") < count:
            monitor.step()
        taken = time.process_time() - began
        memory.release()
        monitor.close()
    return taken


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
