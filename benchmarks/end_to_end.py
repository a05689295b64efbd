"""From a checkpoint whole on disk to its point readable in TensorBoard: the real command, a real reader.

    python benchmarks/end_to_end.py [--arch vit_small_patch16_224] [--num-images 128] [--checkpoints 5]

`dse-monitor watch` runs beside an empty folder; checkpoints are renamed into it one after another, each after
the worker of the one before has ended. TensorBoard's own loader reads the event data again and again. What is
over the forward pass and the metric is what watching costs; medians. The images are decoded already.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.evaluate import write_checkpoint
from dse_monitor import scenes
from dse_monitor.runs import ledger
from dse_monitor.runs.record import TAG_POINT

LOOK_SECONDS = 0.02  # between two readings of the event data
PATIENCE_SECONDS = 900.0  # for one checkpoint


def main(
    arch: str = "vit_small_patch16_224",
    num_images: int = 128,
    checkpoints: int = 5,
    device: str = "auto",
) -> None:
    """Print the table.

    Args:
        arch: timm model.
        num_images: images measured.
        checkpoints: how many are timed, after a first one that decodes the images.
        device: where they are measured.
    """
    with tempfile.TemporaryDirectory() as place:
        folder, run = Path(place), Path(place) / "exp"
        run.mkdir()
        pictures = scenes.write_folder(folder / "pictures", num_images, size=256)
        command = [
            sys.executable,
            "-m",
            "dse_monitor",
            "watch",
            str(run),
            "--images",
            str(pictures),
            "--plain",
        ]
        command += ["--num-images", str(num_images), "--device", device]
        watcher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            reader = Reader(run / "dse")
            waited = [timed(run, folder, arch, number, reader) for number in range(1, checkpoints + 2)][1:]
        finally:
            watcher.terminate()
            watcher.wait()
        spent = [evaluation.seconds for evaluation in ledger.read(run / "dse").evaluations][1:]
    print_table(arch, num_images, waited, spent)


class Reader:
    """TensorBoard's loader over a run's event data; counts the points it has seen."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._loader: EventFileLoader | None = None
        self.points = 0

    def look(self) -> int:
        """Points seen so far, those that were written since the last look included."""
        if self._loader is None:
            found = sorted(self._output.glob("events.out.tfevents.*"))
            if not found:
                return 0
            self._loader = EventFileLoader(str(found[0]))
        for event in self._loader.Load():
            self.points += sum(value.tag.startswith(TAG_POINT) for value in event.summary.value)
        return self.points


def timed(run: Path, folder: Path, arch: str, number: int, reader: Reader) -> float:
    """Seconds from the renaming of one checkpoint until its point can be read."""
    part, _ = write_checkpoint(folder / "writing", arch, seed=number)
    before = reader.look()
    time.sleep(3.0)  # the worker before this one has ended, as between two checkpoints of a training
    start = time.perf_counter()
    part.rename(run / f"checkpoint_{number:04d}.pth")
    while reader.look() == before:
        time.sleep(LOOK_SECONDS)
        if time.perf_counter() - start > PATIENCE_SECONDS:
            raise SystemExit(f"no point of checkpoint {number} within {PATIENCE_SECONDS:.0f} s")
    return time.perf_counter() - start


def print_table(arch: str, count: int, waited: list[float], spent: list[dict[str, float]]) -> None:
    work = [seconds["forward"] + seconds["metric"] for seconds in spent]
    over = [total - own for total, own in zip(waited, work, strict=True)]
    table = Table(title=f"{arch}, {count:,} images, {len(waited)} checkpoints, median seconds")
    table.add_column("from whole on disk to readable in TensorBoard")
    table.add_column("s", justify="right")
    rows = {"all": waited, "forward and metric": work, "the rest (3 s wanted)": over}
    for stage in ("read", "images", "companions", "maps"):
        rows[f"  of which {stage}"] = [seconds.get(stage, 0.0) for seconds in spent]
    rows["  of which between these"] = [2 * seconds["total"] - sum(seconds.values()) for seconds in spent]
    rows["  of which before and after"] = [
        whole - seconds["total"] for whole, seconds in zip(waited, spent, strict=True)
    ]
    for name, values in rows.items():
        table.add_row(name, f"{statistics.median(values):.2f}")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
