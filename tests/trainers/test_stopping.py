"""How a run ends before its end: signals, a loss that is not finite, a number of steps."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from dse_monitor.trainers.engine import saving
from dse_monitor.trainers.engine.divergence import NonFiniteLoss
from dse_monitor.trainers.engine.trainer import Stopped
from dse_monitor.trainers.method import StepOutput
from dse_monitor.trainers.methods.dino import DINO
from dse_monitor.trainers.methods.mae import MAE
from dse_monitor.trainers.settings import TrainOptions

COMMAND = [
    sys.executable,
    "-m",
    "dse_monitor",
    "train",
    "dino",
    "--preset",
    "tiny",
    "--data",
    "scenes",
    "--scenes",
    "16",
]
COMMAND += ["--batch-size", "8", "--prototypes", "64", "--workers", "1", "--device", "cpu"]


@pytest.fixture
def started(tmp_path):
    """A real run of many epochs in a process group of its own, already past its first epoch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*COMMAND, "--epochs", "5000", "--keep", "1", "--out", str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch "):
            break
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)  # three interpreters load torch
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_to_the_whole_group_saves_and_ends_with_the_documented_code(number, code, started, tmp_path):
    os.killpg(started.pid, number)  # as a scheduler or a terminal does: loader processes get it too
    output, _ = started.communicate()
    assert started.returncode == code, output
    assert re.search(rf"\b{code}\b", TrainOptions.__doc__.partition("Exit codes:")[2])
    last = output.splitlines()[-1]
    step = int(re.fullmatch(r"stopped after step (\d+) of 10000; --resume goes on", last)[1])
    path, content = saving.newest(tmp_path)
    assert content["step"] == step
    assert (path.name == saving.LAST) == bool(step % 2)
    done = subprocess.run(
        [*COMMAND, "--epochs", "5000", "--out", str(tmp_path), "--resume", "--max-steps", str(step + 1)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert saving.newest(tmp_path)[1]["step"] == step + 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_several_processes_stop_after_the_same_step_when_torchrun_is_told_to(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = tmp_path / "stderr.txt"
    with said.open("w") as errors:
        process = subprocess.Popen(
            [*command, *COMMAND[1:], "--epochs", "5000", "--keep", "1", "--out", str(tmp_path / "run")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch "):
                break
        os.kill(process.pid, signal.SIGTERM)  # torchrun hands it on and gives its processes half a minute
        output, _ = process.communicate()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    step = int(re.search(r"^stopped after step (\d+) of 10000", output, re.MULTILINE)[1])
    content = saving.newest(tmp_path / "run")[1]
    assert content["step"] == step
    assert len(content["rng"]) == 2
    assert "FutureWarning" not in said.read_text()


class Signalled(DINO):
    """Gets SIGTERM during its second step."""

    def after_step(self, progress) -> None:
        super().after_step(progress)
        if progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_in_an_epoch_saves_after_the_step(small, run, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"):
        run("dino", small("dino"), tmp_path, Signalled, scenes=24)
    content = saving.read(tmp_path / saving.LAST)
    assert (content["step"], content["epoch"]) == (2, 0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_in_the_last_step_of_an_epoch_that_is_not_due_loses_nothing(small, run, tmp_path):
    with pytest.raises(Stopped):
        run("dino", small("dino", epochs=9), tmp_path, Signalled, save_every=9)
    assert saving.newest(tmp_path)[1]["step"] == 2


def test_sigterm_in_the_very_last_step_leaves_a_finished_run(small, run, tmp_path):
    run("dino", small("dino", epochs=1), tmp_path, Signalled)
    assert saving.read(tmp_path / "checkpoint_0001.pth")["step"] == 2


class Diverging(DINO):
    """Its loss is NaN at one step."""

    at = 0

    def forward(self, views, progress) -> StepOutput:
        out = super().forward(views, progress)
        return dataclasses.replace(out, loss=out.loss * torch.nan) if progress.step == self.at else out


@pytest.mark.parametrize(
    ("at", "options"),
    [
        (1, {}),
        (1, {"max_steps": 2}),  # the last step of all
        (1, {"accumulate": 2}),
        (0, {"accumulate": 2, "precision": "float16"}),
        (3, {}),  # the last step of the last epoch
    ],
)
def test_non_finite_loss_stops_and_keeps_the_batch(at, options, small, run, monkeypatch, tmp_path):
    monkeypatch.setattr(Diverging, "at", at)
    with pytest.raises(NonFiniteLoss, match="nan") as raised:
        run("dino", small("dino"), tmp_path, Diverging, **options)
    (file,) = (tmp_path / "non_finite").iterdir()
    assert str(file) in str(raised.value)
    with np.load(file) as batch:
        assert np.isnan(batch["loss"])
        assert batch["image_0"].shape == (8 // options.get("accumulate", 1), 3, 64, 64)
    saved = [path.name for path in tmp_path.glob("*.pth")]
    assert saved == (["checkpoint_0001.pth"] if at == 3 else [])  # nothing that the loss has spoilt


def test_max_steps_ends_between_and_within_epochs(small, run, tmp_path):
    for steps, file in ((1, saving.LAST), (2, "checkpoint_0001.pth"), (3, saving.LAST)):
        run("dino", small("dino"), tmp_path, max_steps=steps, save_every=9, resume=steps > 1)
        path, content = saving.newest(tmp_path)
        assert (path.name, content["step"]) == (file, steps)
    run("dino", small("dino"), tmp_path, max_steps=99, resume=True)  # beyond the end: the end
    assert saving.newest(tmp_path)[1]["step"] == 4


def test_weights_that_are_not_finite_are_not_saved(small, run, tmp_path):
    class Broken(MAE):
        def after_step(self, progress):
            if progress.step == 3:
                with torch.no_grad():
                    next(p for p in self.parameters() if p.requires_grad).view(-1)[0] = math.nan

    with pytest.raises(
        NonFiniteLoss, match=r"1 of .* not finite after step 4.*checkpoint_0001.pth is from before"
    ):
        run("mae", small("mae"), tmp_path, method=Broken, keep=1)
    assert [path.name for path in saving.numbered(tmp_path)] == ["checkpoint_0001.pth"]
    run("mae", small("mae"), tmp_path, resume=True)
