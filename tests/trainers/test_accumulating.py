"""Micro-batches against the large batch: equal where a method says so, with a warning where not."""

from __future__ import annotations

import pytest
import torch

from dse_monitor.trainers.engine import data
from dse_monitor.trainers.engine.trainer import Trainer
from dse_monitor.trainers.method import Views
from dse_monitor.trainers.methods import METHODS, load
from dse_monitor.trainers.settings import Settings

ADDS_UP = ("dino", "esvit", "ibot", "mugs", "mae", "ijepa")  # as the next test finds them


def trainer(name, recipe, out, **changes) -> Trainer:
    values = {"data": "scenes", "scenes": 16, "device": "cpu", "workers": 0, **changes}
    return Trainer(name, load(name), recipe, Settings(out=out, **values), torch.device("cpu"))


def split(batch: data.Batch, parts: int) -> list[data.Batch]:
    """The same views in micro-batches; masks and all else drawn for a batch go with their images."""
    size = len(batch.views.images[0]) // parts
    return [
        data.Batch(
            Views(
                [image[i : i + size] for image in batch.views.images],
                {name: value[i : i + size] for name, value in batch.views.extra.items()},
            ),
            (),
        )
        for i in range(0, size * parts, size)
    ]


def stepped(name, recipe, out, batches: list[data.Batch]) -> Trainer:
    """A trainer after one optimiser step on given micro-batches."""
    one = trainer(name, recipe, out, accumulate=len(batches))
    one.report.close()
    torch.manual_seed(3)  # MAE's noise comes image by image from it
    one.measured = one._optimise(iter(batches), one._progress())
    return one


def apart(large: Trainer, small: Trainer) -> float:
    """The largest distance of one parameter's gradients, relative to its norm or a hundredth of all's."""
    gradients = {n: p.grad for n, p in large.method.named_parameters() if p.grad is not None}
    other = dict(small.method.named_parameters())
    whole = torch.stack([g.norm() for g in gradients.values()]).norm()
    return max(
        float((other[n].grad - g).norm() / torch.maximum(g.norm(), 1e-2 * whole))
        for n, g in gradients.items()
    )


def batch_for(name, recipe, out) -> data.Batch:
    one = trainer(name, recipe, out)
    one.report.close()
    return next(iter(one.loader))


def without_chance(small, name):
    recipe = small(name)
    known = {"drop_path": 0.0, "freeze_last_layer": 0}
    return small(name, **{key: value for key, value in known.items() if hasattr(recipe, key)})


@pytest.mark.parametrize("name", METHODS)
def test_warning_comes_with_every_method_that_is_coupled_and_no_other(name, small, tmp_path, capfd):
    one = trainer(name, small(name), tmp_path, accumulate=2)
    one.report.close()
    warned = "2 micro-batches are not one large batch here" in capfd.readouterr().out
    assert warned == bool(one.method.batch_coupled)
    assert (name in ADDS_UP) == (not warned)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", ADDS_UP)
def test_micro_batches_add_up_to_the_large_batch(name, parts, small, tmp_path):
    recipe = without_chance(small, name)
    batch = batch_for(name, recipe, tmp_path / "views")
    whole = stepped(name, recipe, tmp_path / "whole", [batch])
    pieces = stepped(name, recipe, tmp_path / "parts", split(batch, parts))
    torch.testing.assert_close(pieces.measured["loss"], whole.measured["loss"])
    assert apart(whole, pieces) < 1e-3  # float32 sums in another order
    for key, value in whole.method.state_dict().items():
        if "centre" in key:
            torch.testing.assert_close(pieces.method.state_dict()[key], value, msg=key)


def test_coupled_gradient_is_another_one(small, tmp_path):
    """What the warning is about; and the comparison above can fail."""
    recipe = without_chance(small, "vicreg")
    batch = batch_for("vicreg", recipe, tmp_path / "views")
    whole = stepped("vicreg", recipe, tmp_path / "whole", [batch])
    assert apart(whole, stepped("vicreg", recipe, tmp_path / "parts", split(batch, 2))) > 0.05


def test_convolutional_network_and_dse_term_couple_what_else_adds_up(small, tmp_path, capfd):
    for i, (recipe, flags, reason) in enumerate(
        (
            (small("dino", backbone="resnet_mini"), {}, "batch norm"),
            (small("dino"), {"dse_weight": 1e-3}, "the DSE term"),
        )
    ):
        trainer("dino", recipe, tmp_path / str(i), accumulate=2, **flags).report.close()
        assert f"not one large batch here: {reason}" in capfd.readouterr().out
