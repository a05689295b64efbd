"""SimSiam against vectors made with facebookresearch/simsiam, at the tolerances of its fact sheet."""

import numpy as np
import pytest
import torch

from trainers.heads import mlp
from trainers.method import Plan
from trainers.methods.simsiam import SimSiam, SimSiamRecipe, simsiam_loss

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}
HEADS = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def g(golden):
    return golden("simsiam")


def test_loss_and_gradients_equal_official(g):
    p1, p2, z1, z2 = (g[name].clone().requires_grad_() for name in ("p1", "p2", "z1", "z2"))
    loss = simsiam_loss(p1, p2, z1, z2)
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["loss"], **LOSS)
    torch.testing.assert_close(p1.grad, g["grad_p1"], **GRADIENT)
    torch.testing.assert_close(p2.grad, g["grad_p2"], **GRADIENT)
    assert z1.grad is None
    assert z2.grad is None


def test_heads_and_their_gradients_equal_official(g):
    tiny = SimSiam(SimSiamRecipe.tiny())
    kinds = [[type(layer) for layer in head] for head in (tiny.student.projector, tiny.predictor)]
    projector = mlp((6, 6, 6, 8), bias=False, last_norm="plain")
    projector[6].bias.requires_grad_(False)
    predictor = mlp((8, 4, 8), bias=False)
    assert kinds == [[type(layer) for layer in head] for head in (projector, predictor)]
    for prefix, head in (("encoder.fc.", projector), ("predictor.", predictor)):
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                parameter.copy_(g[f"heads.param.{prefix}{name}"])
    z1, z2 = projector(g["heads.x1"]), projector(g["heads.x2"])
    p1, p2 = predictor(z1), predictor(z2)
    for name, value in {"z1": z1, "z2": z2, "p1": p1, "p2": p2}.items():
        torch.testing.assert_close(value.detach(), g[f"heads.{name}"], **HEADS)
    loss = simsiam_loss(p1, p2, z1, z2)
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["heads.loss"], **HEADS)
    for prefix, head in (("encoder.fc.", projector), ("predictor.", predictor)):
        for name, parameter in head.named_parameters():
            expected = g.get(f"heads.grad.{prefix}{name}")
            assert (parameter.grad is None) == (expected is None), name
            if expected is not None:
                torch.testing.assert_close(parameter.grad, expected, **HEADS)


def test_schedules_equal_official(g):
    method = SimSiam(SimSiamRecipe(backbone="resnet_mini", lr=g["sched.base_lr"], epochs=g["sched.epochs"]))
    schedules = method.schedules(Plan(g["sched.epochs"], 3, g["sched.batch_size"], images=1536))
    np.testing.assert_allclose(schedules["lr"][::3], g["sched.lr_per_epoch"].numpy(), rtol=1e-9)
    fixed = g["sched.lr_predictor_fixed_per_epoch"].numpy()
    np.testing.assert_allclose(schedules["lr_predictor"][::3], fixed, rtol=1e-9)
    assert schedules["lr"][0] == schedules["lr"][2] != schedules["lr"][3]  # once per epoch


def test_everything_that_trains_is_decayed():
    method = SimSiam(SimSiamRecipe.tiny())
    groups = method.parameter_groups()
    named = {name for group in groups for name, _ in group.parameters}
    assert [group.weight_decay for group in groups] == ["weight_decay", "weight_decay"]
    assert any(name.endswith("bn1.bias") for name in named)
    assert "projector.6.bias" not in named
