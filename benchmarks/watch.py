"""What `dse-monitor watch` costs while nothing happens, and how soon it sees a new checkpoint.

    python benchmarks/watch.py [--checkpoints 10000] [--foreign 0] [--seconds 60] [--alert SINK ...]

Starts the real command (default intervals, change events on) beside so many scored checkpoints, and so many
files that are none (half in the run's own folder, half in `samples`), and prints one table: its start,
processor time per second while idle, resident memory, the time from the end of writing a new checkpoint to
the worker's answer, and the time to its end after SIGTERM.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.metric.components import Components
from dse_monitor.runs import heartbeat
from dse_monitor.runs.identity import look
from dse_monitor.runs.ledger import Ledger
from dse_monitor.runs.record import Evaluation, Settings, Source, to_json
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
    run.mkdir(parents=True, exist_ok=True)
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


def add_foreign(run: Path, count: int) -> None:
    """Pictures that a training wrote beside its checkpoints."""
    (run / "samples").mkdir(parents=True)
    for number in range(count):
        folder = run / "samples" if number % 2 else run
        (folder / f"sample_{number:06d}.png").write_bytes(b"\x89PNG")


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

    def prepare(self, order: dict[str, Any]) -> None:
        """Nothing needs to be ready."""

    def receive(self) -> list[dict[str, Any]]:  # noqa: D102
        answers, self._answers = self._answers, []
        return answers

    def descriptors(self) -> list[int]:  # noqa: D102
        return []

    def ended(self) -> None:  # noqa: D102
        return None

    def stop(self, *, kill: bool = False) -> None:  # noqa: D102
        pass


def resident_mb(pid: int | str = "self") -> float:
    """Memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_seconds(pid: int) -> float:
    """Of all threads of a process, without its children; finer than the clock ticks of /proc/PID/stat."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def children(pid: int) -> list[str]:
    """Processes it started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--foreign", type=int, default=0, help="files that are no checkpoints")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--alert", nargs="*", default=[], help="as for the command; clients take memory")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dse-watch-"))
    try:
        measure(folder, arguments.checkpoints, arguments.foreign, arguments.seconds, arguments.alert)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, checkpoints: int, foreign: int, seconds: float, alert: list[str]) -> None:
    """Run the command beside a run that is scored already."""
    from PIL import Image  # not above: benchmarks/soak_simulated.py measures its own memory

    run, images = folder / "run", folder / "images"
    images.mkdir()
    for number in range(16):
        Image.new("RGB", (64, 64), (number, 255 - number, 16 * number % 256)).save(images / f"{number}.png")
    add_foreign(run, foreign)
    fill(run, checkpoints, WatchOptions(runs=(run,), config=EvaluationConfig(images=images)).request)
    command = [sys.executable, "-m", "dse_monitor", "watch", run, "--images", images, "--plain"]
    begin = time.monotonic()
    watcher = subprocess.Popen(
        [str(part) for part in command] + [part for sink in alert for part in ("--alert", sink)],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: scored(run, watcher.pid) >= checkpoints)
        start_up, start_processor = time.monotonic() - begin, processor_seconds(watcher.pid)
        time.sleep(15.0)
        before, begin = processor_seconds(watcher.pid), time.monotonic()
        time.sleep(seconds)
        idle = (processor_seconds(watcher.pid) - before) / (time.monotonic() - begin)
        memory = resident_mb(watcher.pid)
        waits = [pick_up(run, watcher.pid, number) for number in range(PICKUPS)]
        after = resident_mb(watcher.pid)
        begin = time.monotonic()
        watcher.terminate()
        code, ending = watcher.wait(10), time.monotonic() - begin
    finally:
        watcher.kill()
    rows = {
        f"start with {checkpoints:,} scored checkpoints": f"{start_up:.1f} s",
        "the same, processor time": f"{start_processor:.1f} s",
        "idle, share of one core": f"{100 * idle:.3f} %",
        "resident memory": f"{memory:.1f} MB",
        f"the same after {PICKUPS} more checkpoints": f"{after:.1f} MB",
        "new checkpoint whole to its line in the ledger, median": f"{statistics.median(waits):.2f} s",
        "the same, longest": f"{max(waits):.2f} s",
        f"SIGTERM to the end (code {code})": f"{ending:.2f} s",
    }
    for name, value in rows.items():
        print(f"{name:<56}{value:>12}")
    print(
        json.dumps(
            {
                "checkpoints": checkpoints,
                "foreign": foreign,
                "seconds": seconds,
                "pickups": PICKUPS,
                "alert": alert,
            }
        )
    )


def scored(run: Path, pid: int) -> int:
    """How many checkpoints this watcher says are scored."""
    beat = heartbeat.read(run / "dse")
    return beat.scored if beat is not None and beat.pid == pid else 0


def pick_up(run: Path, watcher: int, number: int) -> float:
    """Seconds from the end of writing a checkpoint to its line in the ledger.

    It holds no network, so a worker says at once that it cannot be measured: nearly all of the time is that
    until the worker was asked. The worker itself starts earlier, while the file lies still.
    """
    path = run / f"checkpoint{90_000 + number:05d}.pth"
    write_checkpoint(path)
    whole = time.monotonic()
    wait_for(lambda: path.name.encode() in tail(run / "dse" / "records.jsonl"))
    found = time.monotonic() - whole
    wait_for(lambda: not children(watcher))
    return found


def tail(path: Path) -> bytes:
    """The last lines of a file."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 4096, 0))
        return file.read()


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until something is true; ends the benchmark if it does not become so."""
    end = time.monotonic() + seconds
    while not condition():
        time.sleep(0.01)
        if time.monotonic() > end:
            raise SystemExit("waited in vain")


if __name__ == "__main__":
    main()
