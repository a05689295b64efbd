"""What a watcher costs while nothing happens, and how soon it sees a new checkpoint.

    python benchmarks/watch.py [--checkpoints 10000] [--seconds 60]

Prints one table: processor time per second of an idle watcher beside so many scored checkpoints (default
intervals, change events on), its resident memory, and the time from the end of writing to the start of the
worker's job.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

from dse_monitor.metric.components import Components
from dse_monitor.record import Evaluation, Settings, Source, to_json
from dse_monitor.watch.console import Console
from dse_monitor.watch.identity import look
from dse_monitor.watch.ledger import Ledger
from dse_monitor.watch.monitor import Monitor
from dse_monitor.watch.options import WatchOptions

SETTINGS = Settings(images="0" * 12, num_images=2048)
PICKUPS = 5


def evaluation(name: str, number: int) -> Evaluation:
    """A run that rises, then falls slowly, with noise from checkpoint to checkpoint."""
    noise = math.modf(math.sin(12.9898 * number) * 43758.5453)[0]
    rise = 1 - math.exp(-number / 300)
    parts = Components(
        m_inter=0.6 + 0.4 * rise - 1e-5 * number + 0.01 * noise,
        m_intra_image=0.5,
        m_intra_batch=0.7,
        m_dim=0.6 - 1e-5 * number + 0.002 * noise,
        m_dim_se=0.001,
        separability_se=0.004,
        separability_dim_cov=0.0,
    )
    source = Source(path=name, content=f"{number:064x}", epoch=float(number), layout="dino")
    return Evaluation(
        status="scored", source=source, settings=SETTINGS, components=parts, wall_time=time.time()
    )


def write_checkpoint(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("checkpoint/version", "3\n")
        archive.writestr("checkpoint/data/0", os.urandom(1000))


def fill(run: Path, count: int, request: str) -> None:
    """Many small checkpoints, all scored already."""
    run.mkdir(parents=True)
    ledger = Ledger.open(run / "dse")
    for number in range(1, count + 1):
        path = run / f"checkpoint{number:05d}.pth"
        write_checkpoint(path)
        record = dataclasses.replace(evaluation(path.name, number), seq=number)
        ledger.append(
            "scored",
            {"seq": number, "key": look(path).to_list(), "request": request, "evaluation": to_json(record)},
            sync=False,
        )
    ledger.close()


class Stub:
    """A worker that answers at once and notes when it was asked."""

    asked: dict[str, float] = {}  # noqa: RUF012  shared on purpose

    def __init__(self) -> None:
        self._answers: list[dict[str, Any]] = []

    def send(self, job: dict[str, Any]) -> None:  # noqa: D102
        self.asked[job["name"]] = time.monotonic()
        number = 100_000 + len(self.asked)
        record = to_json(evaluation(job["name"], number))
        self._answers.append({"job": job["job"], "evaluation": record, "stamp": job["stamp"]})

    def receive(self) -> list[dict[str, Any]]:  # noqa: D102
        answers, self._answers = self._answers, []
        return answers

    def descriptors(self) -> list[int]:  # noqa: D102
        return []

    def ended(self) -> str | None:  # noqa: D102
        return None

    def stop(self, *, kill: bool = False) -> None:  # noqa: D102
        pass


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dse-watch-"))
    try:
        measure(folder / "run", arguments.checkpoints, arguments.seconds)
    finally:
        shutil.rmtree(folder)


def measure(run: Path, checkpoints: int, seconds: float) -> None:
    options = WatchOptions(runs=(run,), probe={"images": "none"}, maps=False)
    child = os.fork()  # so that making the files leaves nothing in the memory that is measured
    if child == 0:
        fill(run, checkpoints, options.request)
        os._exit(0)
    os.waitpid(child, 0)
    with open(os.devnull, "w") as silence:
        monitor = Monitor(options, Console(silence, "plain"), make_worker=Stub)
        begin = time.monotonic()
        monitor.step()
        start_up = time.monotonic() - begin
        thread = threading.Thread(target=monitor.run)
        thread.start()
        time.sleep(3.0)
        before, begin = processor_seconds(), time.monotonic()
        time.sleep(seconds)
        idle = (processor_seconds() - before) / (time.monotonic() - begin)
        memory = resident_mb()
        waits = [pick_up(run, number) for number in range(PICKUPS)]
        monitor.stop()
        thread.join()
    assert "torch" not in sys.modules
    rows = {
        f"start with {checkpoints:,} scored checkpoints": f"{start_up:.1f} s",
        "idle, share of one core": f"{100 * idle:.3f} %",
        "resident memory": f"{memory:.1f} MB",
        "new checkpoint whole to job sent, median": f"{statistics.median(waits):.2f} s",
        "the same, longest": f"{max(waits):.2f} s",
    }
    for name, value in rows.items():
        print(f"{name:<45}{value:>12}")
    print(json.dumps({"checkpoints": checkpoints, "seconds": seconds, "pickups": PICKUPS}))


def pick_up(run: Path, number: int) -> float:
    path = run / f"checkpoint{90_000 + number:05d}.pth"
    write_checkpoint(path)
    whole = time.monotonic()
    while path.name not in Stub.asked:
        time.sleep(0.01)
        if time.monotonic() - whole > 60:
            raise SystemExit(f"{path.name} was not picked up within a minute")
    return Stub.asked[path.name] - whole


if __name__ == "__main__":
    main()
