"""Barlow Twins against vectors made with facebookresearch/barlowtwins; tolerances of its fact sheet."""

import numpy as np
import pytest
import torch
from torch import nn

from trainers.method import Plan
from trainers.methods.barlowtwins import (
    BarlowTwins,
    BarlowTwinsRecipe,
    cross_correlation,
    redundancy_terms,
)

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def g(golden):
    return golden("barlowtwins")


def test_loss_and_gradients_equal_official(g):
    norm = nn.BatchNorm1d(g["z1"].shape[1], affine=False)
    z1, z2 = (g[name].clone().requires_grad_() for name in ("z1", "z2"))
    correlation = cross_correlation(norm(z1), norm(z2), g["batch_size"])
    on, off = redundancy_terms(correlation)
    loss = on + g["lambd"] * off
    loss.backward()
    torch.testing.assert_close(correlation.detach(), g["cross_correlation"], rtol=1e-5, atol=1e-6)
    for ours, name in ((on, "on_diag"), (off, "off_diag"), (loss, "loss")):
        torch.testing.assert_close(ours.detach(), g[name], **LOSS)
    torch.testing.assert_close(z1.grad, g["grad_z1"], **GRADIENT)
    torch.testing.assert_close(z2.grad, g["grad_z2"], **GRADIENT)
    torch.testing.assert_close(norm.running_mean, g["bn_running_mean_after"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(norm.running_var, g["bn_running_var_after"], rtol=1e-5, atol=1e-7)


def test_schedules_equal_official(g):
    recipe = BarlowTwinsRecipe(
        backbone="resnet_mini",
        projector_width=8,
        warmup_epochs=g["sched.warmup_epochs"],
        lr=g["sched.lr_weights"],
        lr_biases=g["sched.lr_biases"],
    )
    plan = Plan(g["sched.epochs"], g["sched.iters_per_epoch"], g["sched.batch_size"], images=1)
    schedules = BarlowTwins(recipe).schedules(plan)
    np.testing.assert_allclose(schedules["lr"], g["sched.lr_weights_per_step"].numpy(), rtol=1e-9)
    np.testing.assert_allclose(schedules["lr_biases"], g["sched.lr_biases_per_step"].numpy(), rtol=1e-9)


def test_optimiser_steps_equal_official(g, layerwise_steps):
    recipe = BarlowTwinsRecipe(sgd_momentum=g["lars.momentum"])
    layerwise_steps(
        g,
        "lars",
        recipe,
        {"lr": g["lars.lr_weights"], "weight_decay": g["lars.weight_decay"]},
        {"lr": g["lars.lr_biases"]},
    )


def test_one_dimensional_parameters_have_their_own_rate_and_no_decay():
    weights, biases = BarlowTwins(BarlowTwinsRecipe.tiny()).parameter_groups()
    assert all(p.ndim > 1 for _, p in weights.parameters)
    assert all(p.ndim == 1 for _, p in biases.parameters)
    assert (biases.lr, biases.weight_decay, biases.adapt) == ("lr_biases", "", False)
