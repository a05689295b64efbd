"""A run that was stopped and resumed is the uninterrupted one, bit for bit, whatever its options."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dse_monitor.trainers import distributed
from dse_monitor.trainers.engine import saving
from dse_monitor.trainers.method import StepOutput
from dse_monitor.trainers.methods import METHODS, load
from dse_monitor.trainers.methods.dino import DINO
from dse_monitor.trainers.settings import TrainingError


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_in_the_middle_of_an_epoch(name, small, run, difference, tmp_path):
    recipe = small(name)  # two epochs of two steps
    run(name, recipe, tmp_path / "whole", dse_weight=1e-3)
    run(name, recipe, tmp_path / "parts", dse_weight=1e-3, max_steps=3)
    assert saving.newest(tmp_path / "parts")[1]["step"] == 3
    run(name, recipe, tmp_path / "parts", dse_weight=1e-3, resume=True)
    whole, parts = (saving.read(tmp_path / kind / "checkpoint_0002.pth") for kind in ("whole", "parts"))
    assert difference(whole, parts) == ""
    assert whole["regularizer"].tolist() == [[0, 4]]  # seed and calls


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 2},
        {"precision": "bfloat16"},
        {"checkpointing": True},
        {"dse_every": 2, "dse_from": 0.5},
        {"accumulate": 2, "precision": "float16", "dse_every": 2},
    ],
    ids=lambda options: " ".join(options),
)
def test_options_keep_resuming_exact(options, small, run, difference, tmp_path):
    recipe, options = small("dino", drop_path=0.2), {"dse_weight": 1e-3, **options}
    run("dino", recipe, tmp_path / "whole", **options)
    run("dino", recipe, tmp_path / "parts", max_steps=3, **options)
    run("dino", recipe, tmp_path / "parts", resume=True, **options)
    whole, parts = (saving.read(tmp_path / kind / "checkpoint_0002.pth") for kind in ("whole", "parts"))
    assert difference(whole, parts) == ""


class Overflowing(DINO):
    """Its first gradient is too large for float16, so that the scale moves once."""

    def forward(self, views, progress) -> StepOutput:
        out = super().forward(views, progress)
        return dataclasses.replace(out, loss=out.loss * 1e34) if progress.step == 0 else out


def test_scale_of_float16_gradients_is_resumed(small, run, difference, tmp_path):
    recipe, half = small("dino"), {"precision": "float16"}
    run("dino", recipe, tmp_path / "whole", Overflowing, **half)
    run("dino", recipe, tmp_path / "parts", Overflowing, max_steps=3, **half)
    saved = saving.newest(tmp_path / "parts")[1]["scaler"]
    assert saved["scale"] <= torch.amp.GradScaler("cpu").get_scale() / 2
    run("dino", recipe, tmp_path / "parts", Overflowing, resume=True, **half)
    whole, parts = (saving.read(tmp_path / kind / "checkpoint_0002.pth") for kind in ("whole", "parts"))
    assert difference(whole, parts) == ""


def test_loader_processes_may_change_on_resuming(small, run, difference, tmp_path):
    recipe = small("ijepa")  # masks are drawn where batches are joined
    run("ijepa", recipe, tmp_path / "whole", workers=0)
    run("ijepa", recipe, tmp_path / "parts", workers=2, max_steps=3)
    run("ijepa", recipe, tmp_path / "parts", workers=1, resume=True)
    whole, parts = (saving.read(tmp_path / kind / "checkpoint_0002.pth") for kind in ("whole", "parts"))
    assert difference(whole, parts) == ""


def test_queue_is_part_of_what_is_resumed(small, run, tmp_path):
    """What makes the test over all methods say something of SwAV: its queue fills within that run."""
    run("swav", small("swav"), tmp_path)
    (state,) = saving.read(tmp_path / "checkpoint_0001.pth")["rng"]
    assert state["buffers"]["queue"].shape == (2, 16, load("swav").recipe_type.tiny().projection)
    assert state["buffers"]["queue"].flatten(0, 1).any(1).all()


def test_one_command_starts_from_another_run_and_goes_on(small, run, difference, tmp_path):
    recipe = small("mae")
    run("mae", recipe, tmp_path / "first")
    begun = {"init_from": tmp_path / "first" / "checkpoint_0002.pth", "more_epochs": 2, "resume": True}
    run("mae", recipe, tmp_path / "whole", **begun)
    run("mae", recipe, tmp_path / "parts", **begun, max_steps=5)
    run("mae", recipe, tmp_path / "parts", **begun)
    whole, parts = (saving.read(tmp_path / name / "checkpoint_0004.pth") for name in ("whole", "parts"))
    assert difference(whole, parts) == ""


def test_what_is_resumed_otherwise_than_before_is_said(small, run, tmp_path, capsys):
    recipe = small("mae")
    run("mae", recipe, tmp_path, max_steps=3, dse_weight=0.001)
    (tmp_path / "checkpoint_0001.pth").write_bytes(b"damaged")
    (tmp_path / "checkpoint_last.pth").rename(tmp_path / "checkpoint_0000.pth")
    run("mae", recipe, tmp_path, resume=True)
    said = capsys.readouterr().out
    assert "checkpoint_0001.pth cannot be read" in said
    assert "other settings than before: dse_weight 0.001 -> 0.0" in said
    run("mae", recipe, tmp_path, resume=True)
    assert "nothing to do: 4 of 4 steps are done" in capsys.readouterr().out


def test_processes_that_found_different_checkpoints_do_not_go_on(small, run, tmp_path, monkeypatch):
    recipe = small("mae")
    run("mae", recipe, tmp_path, max_steps=1)
    monkeypatch.setattr(distributed, "gather", lambda mine: torch.cat([mine, -torch.ones_like(mine)]))
    with pytest.raises(TrainingError, match=r"different checkpoints in .*step 1, nothing, by rank"):
        run("mae", recipe, tmp_path, resume=True)


def test_queue_of_another_number_of_processes_is_not_taken_over(small, tmp_path):
    method = load("swav")(small("swav"))
    shorter = {**method.state_dict(), "queue": method.queue[:, :4]}
    fitted = saving._fitted(shorter, method)
    assert fitted["queue"] is method.queue
    assert saving._fitted(method.state_dict(), method)["queue"].shape == method.queue.shape
    method.load_state_dict(fitted)
