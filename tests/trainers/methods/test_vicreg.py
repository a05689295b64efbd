"""VICReg against vectors made with facebookresearch/vicreg, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.vicreg import VICReg, VICRegRecipe, vicreg_terms

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
    weights = {"lr": g["lars.lr"], "weight_decay": g["lars.weight_decay"], "eta": g["lars.eta"]}
    layerwise_steps(g, "lars", recipe, weights, {"lr": g["lars.lr"]})


def test_expander_has_biases_but_none_on_its_output():
    layers = [m for m in VICReg(VICRegRecipe.tiny()).student.projector if isinstance(m, nn.Linear)]
    assert [layer.bias is not None for layer in layers] == [True, True, False]


# What is easily got wrong, one claim each ------------------------------------------------------------------


def test_epsilon_is_under_the_root_of_an_unbiased_variance():
    x = torch.tensor([[0.5], [-0.5], [0.0]])  # 1/4 without bias, 1/6 with it
    _, variance, _ = vicreg_terms(x, x, 3)
    assert variance.item() == pytest.approx(1 - (0.25 + 1e-4) ** 0.5)


def test_variance_is_halved_over_the_views_and_covariance_is_not():
    torch.manual_seed(0)
    x, still = torch.randn(8, 4) * 0.1, torch.zeros(8, 4)
    _, both_variance, both_covariance = vicreg_terms(x, x, 8)
    _, one_variance, one_covariance = vicreg_terms(x, still, 8)
    torch.testing.assert_close(both_covariance, 2 * one_covariance)
    hinge_of_zero = 1 - 1e-4**0.5
    torch.testing.assert_close(one_variance, (both_variance + hinge_of_zero) / 2)


def test_covariance_divides_by_the_batch_it_is_told_of():
    x, y = torch.randn(2, 6, 4)
    *_, told = vicreg_terms(x, y, 11)
    *_, counted = vicreg_terms(x, y, 6)
    torch.testing.assert_close(told * 4, counted)  # (6 - 1) / (11 - 1), squared


def test_statistics_are_centred_and_the_distance_is_not():
    x, y = torch.randn(2, 6, 4)
    invariance, variance, covariance = vicreg_terms(x, y, 6)
    moved, *rest = vicreg_terms(x + 3, y, 6)
    torch.testing.assert_close(rest, [variance, covariance], rtol=1e-4, atol=1e-5)
    assert moved > invariance + 1


def test_embeddings_are_not_normalised():
    x, y = torch.randn(2, 6, 4)
    torch.testing.assert_close(vicreg_terms(3 * x, 3 * y, 6)[0], 9 * vicreg_terms(x, y, 6)[0])


def test_odd_batch_has_finite_terms_and_gradients_even_when_collapsed():
    x = torch.zeros(5, 3, requires_grad=True)
    sum(vicreg_terms(x, torch.zeros(5, 3), 5)).backward()
    assert torch.isfinite(x.grad).all()


def test_vectors_are_neither_decayed_nor_adapted():
    weights, biases = VICReg(VICRegRecipe.tiny()).parameter_groups()
    assert all(p.ndim == 1 for _, p in biases.parameters)
    assert all(p.ndim > 1 for _, p in weights.parameters)
    assert (biases.weight_decay, biases.adapt, biases.lr, weights.adapt) == ("", False, "lr", True)


def test_loss_weighs_the_terms_and_is_float32_whatever_the_forward_runs_in():
    method = VICReg(VICRegRecipe.tiny())
    x, y = torch.randn(2, 16, 256)
    method.student.forward = lambda z: (z, torch.zeros(16, 4, 128))
    terms = vicreg_terms(x, y, 16)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = method(Views([x, y]), Progress(Plan(1, 1, 16, 16))).loss
        assert loss == 25 * terms[0] + 25 * terms[1] + terms[2]


def test_each_view_takes_its_own_pass():
    method = VICReg(VICRegRecipe.tiny()).train()
    method(Views(list(torch.randn(2, 4, 3, 64, 64))), Progress(Plan(1, 1, 4, 4)))
    assert method.student.backbone.bn1.num_batches_tracked == 2


def test_residual_blocks_start_as_identities():
    backbone = VICReg(VICRegRecipe.tiny()).student.backbone
    assert not any(block.bn2.weight.any() for block in backbone.layer1)


def test_first_view_alone_is_always_blurred_and_never_solarised():
    first, second = VICReg(VICRegRecipe.tiny()).views().crops
    assert (first.blur, first.solarise, second.blur, second.solarise) == (1.0, 0.0, 0.1, 0.2)


def test_readmes_run_on_one_node_has_its_own_rate():
    recipe = dataclasses.replace(VICRegRecipe.one_node(), backbone="resnet_mini", expander_width=8)
    lr = VICReg(recipe).schedules(Plan(100, 2, 512, images=1024))["lr"]
    assert lr[0] == 0
    assert lr.max() == lr[20] == pytest.approx(0.6)
    assert 0.6 * 0.001 < lr[-1] < 0.6 * 0.0011  # the end itself is not reached
