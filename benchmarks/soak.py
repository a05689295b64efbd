"""A watcher killed every 20 to 40 seconds beside a training that writes, rotates and overwrites.

Real checkpoints of a small ViT are written: numbered ones, of which only the newest stay, and one that is
overwritten each time, some of them slowly and in place. ``dse-monitor watch`` follows them on the CPU, is
killed with SIGKILL again and again, and started again. In the end each score must equal, bit for bit, what an
undisturbed watcher finds in copies of the same checkpoints, and no content may have two scores.

    python benchmarks/soak.py [--minutes 30] [--seed 0] [--out FOLDER]

The exit code is 1 if anything differs or is doubled, or if a checkpoint that stayed long enough was missed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import tyro

from dse_monitor.runs import ledger
from dse_monitor.runs.record import Evaluation, to_json
from dse_monitor.scenes import write_folder

SIZE, HELD_OUT = 64, 32
PAUSE = (6.0, 12.0)  # seconds between two checkpoints
STAY = 12  # numbered checkpoints that stay: each is there for about two minutes
LONG_ENOUGH = 90.0  # seconds a checkpoint must have been there to count as missed: two restarts of the worker
KILL = (20.0, 40.0)  # seconds between two kills


class Trainer(threading.Thread):
    """Writes checkpoints until it is told to end; copies of all go to ``archive``."""

    def __init__(self, run: Path, archive: Path, template: Path, seed: int):
        super().__init__(daemon=True)
        import torch

        self.run_folder, self.archive = run, archive
        self.lifetimes: dict[str, float] = {}  # seconds each numbered checkpoint was there
        self.ended = threading.Event()
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._state: dict[str, Any] = torch.load(template, weights_only=True)

    def run(self) -> None:
        """Write, overwrite, rotate."""
        there: dict[str, float] = {}
        number = 0
        while not self.ended.wait(self._random.uniform(*PAUSE)):
            number += 1
            name = f"checkpoint_{number:04d}.pth"
            content = self._next(number)
            shutil.copyfile(content, self.archive / name)
            self._write(content, self.run_folder / name)
            there[name] = time.monotonic()
            self._write(content, self.run_folder / "checkpoint.pth")
            while len(there) > STAY:
                oldest = next(iter(there))
                self.lifetimes[oldest] = time.monotonic() - there.pop(oldest)
                (self.run_folder / oldest).unlink()
        self.lifetimes |= dict.fromkeys(there, float("inf"))

    def _next(self, number: int) -> Path:
        """The next checkpoint: every weight moved a little, one epoch later."""
        import torch

        for tensor in _tensors(self._state["model"]):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=self._generator)
                tensor.add_(0.01 * tensor.abs().mean() * noise.to(tensor.dtype))
        self._state["epoch"] = number
        target = self.archive.parent / "next.pth"
        torch.save(self._state, target)
        return target

    def _write(self, content: Path, target: Path) -> None:
        """At once under another name, or slowly in place."""
        if self._random.random() < 0.6:
            part = target.with_name(f".{target.name}.tmp")
            shutil.copyfile(content, part)
            part.replace(target)
            return
        data = content.read_bytes()
        with target.open("wb") as file:
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                file.write(half)
                file.flush()
                time.sleep(self._random.uniform(0.1, 1.0))


def main(minutes: float = 30.0, seed: int = 0, out: Path | None = None) -> None:
    """Soak, compare, print one table.

    Args:
        minutes: how long the watcher is killed and started again.
        seed: of weights, pauses and kills.
        out: folder for everything; a temporary one if not given.
    """
    folder = out or Path(tempfile.mkdtemp(prefix="dse-soak-"))
    run, archive = folder / "run", folder / "archive"
    for each in (run, archive):
        each.mkdir(parents=True)
    images = write_folder(folder / "held-out", HELD_OUT, size=SIZE, seed=1)
    trainer = Trainer(run, archive, _template(folder), seed)
    trainer.start()
    kills, most = _disturb(run, images, 60 * minutes, random.Random(seed + 1))
    trainer.ended.set()
    trainer.join()
    for target in (run, archive):
        _watch(target, images, folder, "--once").wait()
    sys.exit(_report(run, archive, trainer.lifetimes, kills, most))


def _disturb(run: Path, images: Path, seconds: float, chance: random.Random) -> tuple[int, dict[str, int]]:
    """Start the watcher and kill it until time is up; kills, and the most memory and descriptors seen."""
    end = time.monotonic() + seconds
    kills, most = 0, {"resident MB": 0, "descriptors": 0, "threads": 0}
    while time.monotonic() < end:
        watcher = _watch(run, images, run.parent)
        until = time.monotonic() + chance.uniform(*KILL)
        while time.monotonic() < until and watcher.poll() is None:
            for name, value in _usage(watcher.pid).items():
                most[name] = max(most[name], value)
            time.sleep(0.5)
        if watcher.poll() is not None:
            raise SystemExit(
                f"the watcher ended by itself with {watcher.returncode}; see {run.parent}/watch.log"
            )
        watcher.send_signal(signal.SIGKILL)
        watcher.wait()
        kills += 1
    return kills, most


def _report(run: Path, archive: Path, lifetimes: dict[str, float], kills: int, most: dict[str, int]) -> int:
    ours, theirs = (ledger.read(each / "dse").evaluations for each in (run, archive))
    truth = {e.source.content: e for e in theirs}
    contents = [e.source.content for e in ours if e.status == "scored"]
    different = [e.source.path for e in ours if _numbers(e) != _numbers(truth.get(e.source.content))]
    stayed = {name for name, seconds in lifetimes.items() if seconds >= LONG_ENOUGH}
    named = {e.source.path: e.source.content for e in theirs}
    missed = sorted(name for name in stayed if named.get(name) not in contents)
    rows = {
        "kills": kills,
        "checkpoints written": len(theirs),
        "evaluations": len(ours),
        "of these failed": sum(e.status != "scored" for e in ours),
        "not equal to the undisturbed ones": len(different),
        "contents scored twice": len(contents) - len(set(contents)),
        f"missed though there for {LONG_ENOUGH:.0f} s": len(missed),
        "numbered, gone sooner": len(lifetimes) - len(stayed),
        **{f"most {name}": value for name, value in most.items()},
    }
    for name, value in rows.items():
        print(f"{name:<40}{value:>10}")
    for title, names in (("not equal", different), ("missed", missed)):
        if names:
            print(f"{title}: {', '.join(names)}")
    return int(bool(different or missed or len(contents) != len(set(contents))))


def _numbers(evaluation: Evaluation | None) -> str:
    """What must be equal: everything that was measured."""
    if evaluation is None:
        return ""
    data = to_json(evaluation)
    return json.dumps({name: data[name] for name in ("status", "components", "companions", "settings")})


def _template(folder: Path) -> Path:
    """A checkpoint as our own trainer writes it."""
    scenes = write_folder(folder / "train", 64, size=SIZE, seed=0)
    flags = ["--preset", "tiny", "--data", scenes, "--out", folder / "template", "--device", "cpu"]
    flags += ["--epochs", "1", "--workers", "0"]
    command = [sys.executable, "-m", "dse_monitor", "train", "mae", *map(str, flags)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next((folder / "template").glob("checkpoint_*.pth"))


def _watch(run: Path, images: Path, logs: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "dse_monitor",
        "watch",
        str(run),
        "--images",
        str(images),
        "--device",
        "cpu",
    ]
    command += ["--num-images", str(HELD_OUT), "--plain", "--no-maps", *flags]
    with (logs / "watch.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def _usage(pid: int) -> dict[str, int]:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return {
            "resident MB": int(fields["VmRSS"].split()[0]) // 1024,
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": int(fields["Threads"]),
        }
    except (OSError, KeyError):
        return {}


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [tensor for each in value.values() for tensor in _tensors(each)]
    return [value] if hasattr(value, "is_floating_point") else []


if __name__ == "__main__":
    tyro.cli(main)
