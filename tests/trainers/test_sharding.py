"""FSDP against DDP on two gloo processes, its checkpoints, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dse_monitor.checkpoints.load import load_encoder
from dse_monitor.trainers.engine import saving
from dse_monitor.trainers.engine.trainer import Trainer
from dse_monitor.trainers.methods import load
from dse_monitor.trainers.settings import Settings, TrainingError

SCRIPT = Path(__file__).with_name("two_shards.py")
# with a teacher and without, EMA before and after the step, fixed parameters, batch norm, a relation block
METHODS = ("dino", "ibot", "mugs", "mae", "ijepa", "mocov3", "esvit")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder two processes wrote to."""
    out = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(SCRIPT), str(out), *METHODS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", METHODS)
def test_spread_network_trains_as_a_copied_one(name, together):
    runs = torch.load(together / "written.pt", weights_only=True)[name]
    assert runs["ddp"].keys() == runs["fsdp"].keys()
    for key, value in runs["ddp"].items():
        # float32 sums in another order; AdamW turns rounding of a gradient near zero into a step
        torch.testing.assert_close(
            runs["fsdp"][key], value, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_spread_run_resumes_exactly_and_its_checkpoint_is_whole(together):
    whole, parts = (saving.read(together / name / "checkpoint_0002.pth") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 4
    for key, value in whole["model"].items():
        assert type(value) is torch.Tensor
        assert torch.equal(value, parts["model"][key]), key
    for index, entries in whole["optimizer"]["state"].items():
        for key, value in entries.items():
            assert torch.equal(value, parts["optimizer"]["state"][index][key])
    assert load_encoder(together / "whole" / "checkpoint_0002.pth") is not None


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("dino", {}, "one process"),
        ("dino", {"compile": True}, "--compile"),
        ("dino", {"precision": "float16"}, "take bfloat16"),
        ("simsiam", {}, "convolutional resnet_mini"),
        ("barlowtwins", {}, "--optimizer lars"),
    ],
)
def test_what_cannot_be_combined_is_refused(name, flags, message, tmp_path):
    settings = Settings(
        data="scenes", out=tmp_path, scenes=8, device="cpu", workers=0, parallel="fsdp", **flags
    )
    recipe = dataclasses.replace(load(name).recipe_type.tiny(), batch_size=8)
    with pytest.raises(TrainingError, match=message):
        Trainer(name, load(name), recipe, settings, torch.device("cpu"))
