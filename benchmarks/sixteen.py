"""Every method's tiny preset, three epochs on built-in scenes, followed by ``dse-monitor watch`` on the CPU.

One table comes out: loss and DSE after the first and the last epoch, images per second of the training while
it is watched, and whether trainer and watcher both ended well with every epoch scored. DSE is at the run's
own lambda. Finished methods are kept in ``--out`` and not run again; an interrupted one starts anew.

    python benchmarks/sixteen.py [--methods dino,mae] [--scenes 1024] [--epochs 3] [--out runs/sixteen]
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]

from dse_monitor.runs import ledger
from dse_monitor.runs.record import OUTPUT_FOLDER
from dse_monitor.runs.series import Series
from dse_monitor.scenes import write_folder
from dse_monitor.trainers.methods import METHODS

SIZE = 64  # px, the tiny presets' images
PATIENCE_SECONDS = 300.0  # for the watcher to score the last checkpoint after the training is over
LOSS, SPEED = "train/loss", "train/images_per_second"


@dataclass(frozen=True)
class Result:
    """One method's run; ``why`` is empty if all went well."""

    method: str
    loss: tuple[float, ...]
    dse: tuple[float, ...]
    images_per_second: float
    seconds: float
    why: str

    def row(self) -> str:
        """The result as a line of the table."""
        return " | ".join(
            [
                f"| {self.method}",
                _change(self.loss, ".3f"),
                _change(self.dse, "+.3f"),
                f"{self.images_per_second:.0f}",
                f"{self.seconds:.0f}",
                f"{f'no: {self.why}' if self.why else 'yes'} |",
            ]
        )


def main(
    methods: str = ",".join(METHODS),
    scenes: int = 1024,
    held_out: int = 128,
    epochs: int = 3,
    out: Path = Path("runs/sixteen"),
) -> None:
    """Run what is missing, print the table; exit code 1 if a method did not do well.

    Args:
        methods: names, separated by commas.
        scenes: scenes to train on.
        held_out: scenes that DSE is measured on.
        epochs: length of each run.
        out: folder of scenes, runs and results.
    """
    names = methods.split(",")
    if unknown := set(names) - set(METHODS):
        raise SystemExit(f"no such method: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    data = write_folder(out / f"scenes-{scenes}", scenes, size=SIZE, seed=0)
    images = write_folder(out / f"held-out-{held_out}", held_out, size=SIZE, seed=1)
    results = []
    for name in names:
        kept = out / f"{name}-{scenes}-{held_out}-{epochs}.json"
        if kept.exists():
            result = Result(**json.loads(kept.read_text()))
        else:
            result = run(name, data, images, out / name, held_out, epochs)
            if not result.why:
                kept.write_text(json.dumps(asdict(result)))
            print(result.row(), file=sys.stderr, flush=True)
        results.append(result)
    print("| method | loss first -> last | DSE first -> last | images/s | seconds | ok |")
    print("| --- | --- | --- | --- | --- | --- |")
    for result in results:
        print(result.row())
    if any(result.why for result in results):
        raise SystemExit(1)


def run(name: str, data: Path, images: Path, folder: Path, held_out: int, epochs: int) -> Result:
    """Train one method under the watcher; what they say goes to ``folder``'s two logs."""
    shutil.rmtree(folder, ignore_errors=True)
    run_folder = folder / "run"
    run_folder.mkdir(parents=True)
    train = [
        "-m",
        "dse_monitor",
        "train",
        name,
        "--preset",
        "tiny",
        "--data",
        data,
        "--out",
        run_folder,
        "--device",
        "cpu",
    ]
    train += ["--epochs", epochs, "--log-every", 10**9]  # one entry per epoch, its mean
    watch = ["-m", "dse_monitor", "watch", run_folder, "--images", images, "--num-images", held_out]
    watch += ["--device", "cpu", "--plain", "--until-epoch", epochs]
    start = time.monotonic()
    watcher, trainer = _start(watch, folder / "watch.log"), _start(train, folder / "train.log")
    try:
        why = _outcome(trainer, watcher)
    finally:
        for child in (trainer, watcher):
            if child.poll() is None:
                child.terminate()
                child.wait()
    seconds = time.monotonic() - start
    events = EventAccumulator(str(run_folder)).Reload()
    logged = events.Tags()["scalars"]
    loss, speed = ([e.value for e in events.Scalars(tag)] if tag in logged else [] for tag in (LOSS, SPEED))
    dse = Series.from_evaluations(ledger.read(run_folder / OUTPUT_FOLDER).evaluations).dse.tolist()
    if not why and len(dse) != epochs:
        why = f"{len(dse)} of {epochs} checkpoints scored"
    if not why and not (len(loss) == epochs and all(map(math.isfinite, loss))):
        why = f"losses {loss}"
    return Result(name, tuple(loss), tuple(dse), speed[-1] if speed else math.nan, seconds, why)


def _start(arguments: list[object], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def _outcome(trainer: subprocess.Popen[bytes], watcher: subprocess.Popen[bytes]) -> str:
    """Wait for both; empty if they end well, else what went wrong."""
    if code := trainer.wait():
        return f"trainer ended with {code}"
    try:
        code = watcher.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"watcher not done {PATIENCE_SECONDS:.0f} s after the training"
    return f"watcher ended with {code}" if code else ""


def _change(values: tuple[float, ...], form: str) -> str:
    return f"{values[0]:{form}} -> {values[-1]:{form}}" if values else "-"


if __name__ == "__main__":
    tyro.cli(main)
