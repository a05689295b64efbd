"""Barlow Twins against vectors made with facebookresearch/barlowtwins; tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.barlowtwins import (
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
        {"lr": g["lars.lr_weights"], "weight_decay": g["lars.weight_decay"], "eta": g["lars.eta"]},
        {"lr": g["lars.lr_biases"]},
    )


def test_one_dimensional_parameters_have_their_own_rate_and_no_decay():
    weights, biases = BarlowTwins(BarlowTwinsRecipe.tiny()).parameter_groups()
    assert all(p.ndim > 1 for _, p in weights.parameters)
    assert all(p.ndim == 1 for _, p in biases.parameters)
    assert (biases.lr, biases.weight_decay, biases.adapt) == ("lr_biases", "", False)


# What is easily got wrong, one claim each ------------------------------------------------------------------


@pytest.fixture
def method():
    torch.manual_seed(0)
    return BarlowTwins(BarlowTwinsRecipe.tiny())


def progress(batch):
    return Progress(Plan(1, 1, batch, batch))


def test_correlation_is_divided_by_the_images_of_all_processes():
    z1, z2 = torch.randn(2, 5, 3)
    torch.testing.assert_close(cross_correlation(z1, z2, 10), cross_correlation(z1, z2, 5) / 2)


def test_identical_views_have_a_diagonal_of_one():
    z = nn.BatchNorm1d(6, affine=False)(torch.randn(33, 6) * 4 + 2)
    torch.testing.assert_close(cross_correlation(z, z, 33).diagonal(), torch.ones(6), rtol=1e-4, atol=0)


def test_both_terms_are_sums_over_all_entries():
    on, off = redundancy_terms(torch.full((7, 7), 0.5))
    assert on.item() == pytest.approx(7 * 0.25)
    assert off.item() == pytest.approx(7 * 6 * 0.25)


def test_norm_without_weights_follows_a_projector_that_ends_without_one(method):
    assert not list(method.bn.parameters())
    layers = list(method.student.projector)
    assert isinstance(layers[-1], nn.Linear)
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Linear))


def test_each_view_is_normalised_by_itself(method):
    method.train()
    method(Views([torch.randn(4, 3, 64, 64), torch.randn(4, 3, 64, 64) + 5]), progress(4))
    assert method.bn.num_batches_tracked == 2
    assert method.student.backbone.bn1.num_batches_tracked == 2


def test_biases_learn_at_their_own_rate_all_along():
    recipe = dataclasses.replace(BarlowTwinsRecipe.tiny(), lr=0.2, lr_biases=0.0048, warmup_epochs=10)
    schedules = BarlowTwins(recipe).schedules(Plan(12, 3, 2048, images=3 * 2048))
    np.testing.assert_allclose(schedules["lr_biases"], schedules["lr"] * 0.024, rtol=1e-12)
    assert schedules["lr"].max() == pytest.approx(0.2 * 2048 / 256)


@pytest.mark.parametrize("epochs", [4, 10, 11])
def test_warmup_takes_ten_epochs_however_long_the_run(epochs):
    recipe = dataclasses.replace(BarlowTwinsRecipe.tiny(), warmup_epochs=BarlowTwinsRecipe.warmup_epochs)
    lr = BarlowTwins(recipe).schedules(Plan(epochs, 3, 256, images=3 * 256))["lr"]
    rising = min(epochs * 3, 30)
    np.testing.assert_allclose(lr[:rising], recipe.lr * np.arange(rising) / 30)
    assert np.isfinite(lr).all()


def test_first_view_alone_is_always_blurred_and_never_solarised(method):
    first, second = method.views().crops
    assert (first.blur, first.solarise, second.blur, second.solarise) == (1.0, 0.0, 0.1, 0.2)
    assert first.scale == second.scale == (0.08, 1.0)
    assert (first.flip_last, first.interpolation, first.jitter) == (False, "bicubic", (0.4, 0.4, 0.2, 0.1))


def test_correlation_is_float32_whatever_the_forward_runs_in(method):
    projections, tokens = list(torch.randn(2, 16, 256)), torch.zeros(16, 4, 128)
    method.student.forward = lambda x: (x, tokens)
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(method(Views(projections), progress(16)).loss)
    assert losses[0] == losses[1]
