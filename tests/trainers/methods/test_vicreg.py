"""VICReg against vectors made with facebookresearch/vicreg, at the tolerances of its fact sheet."""

import numpy as np
import pytest
import torch
from torch import nn

from trainers.method import Plan
from trainers.methods.vicreg import VICReg, VICRegRecipe, vicreg_terms

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def g(golden):
    return golden("vicreg")


def test_loss_and_gradients_equal_official(g):
    x, y = (g[name].clone().requires_grad_() for name in ("x", "y"))
    invariance, variance, covariance = vicreg_terms(x, y, g["batch_size"])
    loss = g["sim_coeff"] * invariance + g["std_coeff"] * variance + g["cov_coeff"] * covariance
    loss.backward()
    names = ((invariance, "repr_loss"), (variance, "std_loss"), (covariance, "cov_loss"), (loss, "loss"))
    for ours, name in names:
        torch.testing.assert_close(ours.detach(), g[name], **LOSS)
    torch.testing.assert_close(x.grad, g["grad_x"], **GRADIENT)
    torch.testing.assert_close(y.grad, g["grad_y"], **GRADIENT)


def test_schedule_equals_official(g):
    recipe = VICRegRecipe(
        backbone="resnet_mini",
        expander_width=8,
        warmup_epochs=g["sched.warmup_epochs"],
        lr=g["sched.base_lr"],
    )
    plan = Plan(g["sched.epochs"], g["sched.iters_per_epoch"], g["sched.batch_size"], images=1)
    schedules = VICReg(recipe).schedules(plan)
    np.testing.assert_allclose(schedules["lr"], g["sched.lr_per_step"].numpy(), rtol=1e-9)


def test_optimiser_steps_equal_official(g, layerwise_steps):
    recipe = VICRegRecipe(sgd_momentum=g["lars.momentum"])
    layerwise_steps(
        g, "lars", recipe, {"lr": g["lars.lr"], "weight_decay": g["lars.weight_decay"]}, {"lr": g["lars.lr"]}
    )


def test_expander_has_biases_but_none_on_its_output():
    layers = [m for m in VICReg(VICRegRecipe.tiny()).student.projector if isinstance(m, nn.Linear)]
    assert [layer.bias is not None for layer in layers] == [True, True, False]
