"""Half precision: every method trains in it, its objective stays in float32, and its gradients are scaled."""

from __future__ import annotations

import pytest
import torch

from dse_monitor.trainers.engine import saving
from dse_monitor.trainers.engine.trainer import Trainer
from dse_monitor.trainers.methods import METHODS, load
from dse_monitor.trainers.settings import Settings


def trainer(name, recipe, out, **changes) -> Trainer:
    values = {"data": "scenes", "scenes": 16, "device": "cpu", "workers": 0, **changes}
    one = Trainer(name, load(name), recipe, Settings(out=out, **values), torch.device("cpu"))
    one.report.close()
    return one


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_step_is_near_the_float32_one(name, small, tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16"):
        one = trainer(name, small(name), tmp_path / precision, precision=precision, dse_weight=1e-3)
        kinds = set()
        for layer in one.method.modules():
            if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
                layer.register_forward_hook(lambda _, __, out, kinds=kinds: kinds.add(out.dtype))
        torch.manual_seed(3)
        one.method.before_step(one._progress())
        loss, terms = one._loss(one._received(next(iter(one.loader))), one._progress())
        assert getattr(torch, precision) in kinds
        assert loss.dtype == torch.float32
        assert all(value.dtype in (torch.float32, torch.float64) for value in terms.values())
        loss.backward()
        gradients = [p.grad for p in one.method.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        losses[precision] = loss.item()
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1, abs=0.1)
    assert losses["bfloat16"] != losses["float32"]


@pytest.mark.parametrize("name", ["dino", "mae"])
def test_float16_trains_with_a_scale_that_finds_its_place(name, small, run, tmp_path):
    """Steps whose scaled gradient overflows are skipped until the scale fits; then weights move."""
    run(name, small(name, epochs=4), tmp_path, precision="float16")
    start, end = (saving.read(tmp_path / f"checkpoint_000{epoch}.pth") for epoch in (1, 4))
    assert 0 < end["scaler"]["scale"] <= start["scaler"]["scale"] <= torch.amp.GradScaler("cpu").get_scale()
    key = next(k for k in end["model"] if k.startswith("student") and k.endswith("qkv.weight"))
    assert not torch.equal(start["model"][key], end["model"][key])
    assert all(value.isfinite().all() for value in end["model"].values())


def test_automatic_precision_of_a_cpu_is_float32_and_needs_no_scale(small, tmp_path):
    one = trainer("dino", small("dino"), tmp_path)
    assert one.precision == torch.float32
    assert not one.scaler.is_enabled()
    half = trainer("dino", small("dino"), tmp_path, precision="bfloat16")
    assert not half.scaler.is_enabled()
