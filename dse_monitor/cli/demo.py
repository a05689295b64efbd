"""`dse-monitor demo`: make scenes, train a tiny DINO on them, watch it, serve TensorBoard; a few minutes."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

from dse_monitor import scenes
from dse_monitor.errors import RunError
from dse_monitor.flags import Flag
from dse_monitor.watch.process import python_module

TRAIN_SCENES = 1024  # enough that an epoch has a shape; 25 s to draw on two cores
HELD_OUT_SCENES = 256  # chosen by us: errors small beside the curve, forward pass about a second
SIZE = 64  # px; the tiny preset's image size
EPOCHS = 12
STOP_SECONDS = 10.0  # s a child gets to end by itself


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Train a tiny network on scenes, watch it, and serve TensorBoard.

    Takes a few minutes on two cores and needs no data.

    Examples:
        dse-monitor demo
        dse-monitor demo --out /tmp/demo --no-serve
    """

    out: Annotated[Path, Flag(metavar="DIR")] = Path("dse-demo")
    """Folder for scenes, run and logs."""
    serve: bool = True
    """Serve TensorBoard during the run and after it, until Ctrl-C."""
    port: Annotated[int | None, Flag(default="a free one")] = None
    """Port of TensorBoard."""

    def __post_init__(self) -> None:
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"--port must be from 1 to 65535, got {self.port}")


def demo(options: DemoOptions) -> int:
    """Run the demonstration."""
    return run(options.out, serve=options.serve, port=options.port)


def run(out: Path, *, serve: bool, port: int | None, epochs: int = EPOCHS) -> int:
    """Run the demonstration in ``out``; returns the exit code of whatever failed first, else 0.

    Raises:
        RunError: ``out`` already holds something other than an earlier demonstration.
    """
    marker = out / "scenes"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise RunError(f"{out} is not empty and was not made by the demo: give another folder with --out")
    train, held_out, run_folder = marker / "train", marker / "held-out", out / "runs" / "dino"
    if run_folder.exists():
        raise RunError(
            f"{run_folder} already holds a demo run: look at it with tensorboard --logdir {out / 'runs'}, "
            f"or give another folder with --out"
        )
    _say(f"scenes    {TRAIN_SCENES:,} to train on, {HELD_OUT_SCENES} held out, {SIZE} px")
    scenes.write_folder(train, count=TRAIN_SCENES, size=SIZE, seed=0)
    scenes.write_folder(held_out, count=HELD_OUT_SCENES, size=SIZE, seed=1)

    run_folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, _interrupt)  # a polite kill ends the children too
    log = out / "training.log"
    children: list[subprocess.Popen[bytes]] = []
    try:
        link = None
        if serve:
            port = port or _free_port()
            link = f"http://localhost:{port}/#dse"
            children.append(_start(_tensorboard(out / "runs", port), out / "tensorboard.log"))
            _say(f"tab       {link}")
        trainer = _start(_trainer(train, run_folder, epochs), log)
        children.append(trainer)
        _say(f"training  a tiny DINO for {epochs} epochs in another process (log: {log})\n")
        watcher = subprocess.Popen(_watcher(run_folder, held_out, epochs))
        children.append(watcher)
        code = _wait(trainer, watcher, log)
        if code or link is None:
            return code
        _say(f"\nThe run is finished. Look at it: {link}   (Ctrl-C ends the demo)")
        children[0].wait()
        return 0
    except KeyboardInterrupt:
        return 0
    finally:
        for child in children:
            _stop(child)


def _trainer(data: Path, out: Path, epochs: int) -> list[str]:
    return [
        *python_module("dse_monitor"),
        "train",
        "dino",
        "--preset",
        "tiny",
        "--data",
        str(data),
        "--out",
        str(out),
        "--epochs",
        str(epochs),
    ]


def _watcher(run_folder: Path, images: Path, epochs: int) -> list[str]:
    return [
        *python_module("dse_monitor"),
        "watch",
        str(run_folder),
        "--images",
        str(images),
        "--num-images",
        str(HELD_OUT_SCENES),
        "--until-epoch",
        str(epochs),
        "--device",
        "cpu",
    ]


def _tensorboard(logdir: Path, port: int) -> list[str]:
    return [*python_module("tensorboard.main"), "--logdir", str(logdir), "--port", str(port)]


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def _wait(trainer: subprocess.Popen[bytes], watcher: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for the watcher; it ends by itself once the last epoch is scored. A dead trainer ends both."""
    while (code := watcher.poll()) is None:
        if trainer.poll():
            _stop(watcher)
            tail = log.read_text(errors="replace").splitlines()[-12:]
            raise RunError("the training ended with an error; the end of its log:\n  " + "\n  ".join(tail))
        time.sleep(0.2)
    return code


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _say(text: str) -> None:
    print(text, flush=True)
