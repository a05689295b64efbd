"""MEC against vectors made with xinliu20/MEC, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dse_monitor.trainers.blocks import teacher
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.mec import (
    MEC,
    MECRecipe,
    coding_length,
    coding_trace,
    inverse_lambda,
    mec_loss,
)

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}


@pytest.fixture(scope="module")
def g(golden):
    return golden("mec")


def test_loss_and_gradients_equal_official(g):
    z1, z2, p1, p2 = (g[name].clone().requires_grad_() for name in ("z1", "z2", "p1", "p2"))
    loss = mec_loss(p1, p2, z1, z2, g["lamda_inv"], g["order"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["loss"], **LOSS)
    length = coding_length(loss.detach(), g["lamda_inv"], g["m"], g["dim"])
    assert length.item() == pytest.approx(g["mec_coding_length"], rel=1e-5)
    torch.testing.assert_close(z1.grad, g["grad_z1"], **GRADIENT)
    torch.testing.assert_close(z2.grad, g["grad_z2"], **GRADIENT)
    assert p1.grad is None
    assert p2.grad is None


@pytest.mark.parametrize("order", range(1, 7))
def test_series_of_every_order_equals_official(g, order):
    for a, b in (("p1", "z2"), ("p2", "z1")):
        ours = coding_trace(g[a], g[b], g["lamda_inv"], order)
        torch.testing.assert_close(ours, g[f"trace_{a}_{b}_by_order"][order - 1], rtol=1e-5, atol=1e-6)


def test_inverse_lambda_equals_official(g):
    assert inverse_lambda(g["m"], g["dim"], g["eps"]) == pytest.approx(1 / g["lamda"])


def test_inverse_lambda_of_the_paper():
    assert inverse_lambda(1024, 2048, 64.0) == 32.0


def test_teacher_update_equals_official(g):
    student, averaged = nn.Module(), nn.Module()
    student.w = nn.Parameter(g["ema.student_weight"].clone())
    averaged.w = nn.Parameter(g["ema.teacher_weight_before"].clone())
    teacher.ema_update(averaged, student, g["ema.momentum"])
    torch.testing.assert_close(averaged.w.data, g["ema.teacher_weight_after"], rtol=1e-6, atol=1e-7)


def test_schedules_equal_official(g):
    recipe = MECRecipe(
        backbone="resnet_mini",
        lr=g["sched.base_lr"],
        warmup_epochs=g["sched.warmup_epochs"],
        lambda_epochs=g["sched.warmup_epochs"],
        projection=g["sched.dim"],
        distortion=g["sched.eps"],
        teacher_momentum=g["sched.teacher_momentum"],
    )
    plan = Plan(g["sched.epochs"], g["sched.iters_per_epoch"], g["sched.batch_size"], images=1)
    schedules = MEC(recipe).schedules(plan)
    for ours, theirs in (("lr", "lr"), ("teacher_momentum", "momentum"), ("inverse_lambda", "lamda_inv")):
        np.testing.assert_allclose(schedules[ours], g[f"sched.{theirs}_per_step"].numpy(), rtol=1e-9)


# What is easily got wrong, one claim each ------------------------------------------------------------------


def tiny(**options):
    torch.manual_seed(0)
    return MEC(dataclasses.replace(MECRecipe.tiny(), **options))


def test_powers_are_those_of_a_matrix_that_is_not_symmetric():
    torch.manual_seed(0)
    p, z = torch.randn(2, 5, 7)
    c = F.normalize(p) @ F.normalize(z).T / 2.0
    assert not torch.allclose(c, c.T)
    powers = [torch.linalg.matrix_power(c, k) for k in (1, 2, 3, 4)]
    series = powers[0] - powers[1] / 2 + powers[2] / 3 - powers[3] / 4
    torch.testing.assert_close(coding_trace(p, z, 2.0), series.trace())


def test_series_is_the_log_determinant_where_it_converges():
    torch.manual_seed(0)
    p, z = torch.randn(2, 6, 8)
    c = F.normalize(p) @ F.normalize(z).T / 12.0
    exact = torch.logdet(torch.eye(6) + c)
    torch.testing.assert_close(coding_trace(p, z, 12.0, order=8), exact, rtol=1e-4, atol=1e-5)


def test_loss_is_scaled_by_inverse_lambda_and_one_over_the_batch_stands_outside_the_trace():
    torch.manual_seed(0)
    p1, p2, z1, z2 = torch.randn(4, 6, 8)
    traces = coding_trace(p1, z2, 3.0) + coding_trace(p2, z1, 3.0)
    torch.testing.assert_close(mec_loss(p1, p2, z1, z2, 3.0), -3.0 * traces / 12)


def test_views_are_crossed():
    torch.manual_seed(0)
    p1, p2, z1, z2, other = torch.randn(5, 6, 8)
    z1.requires_grad_()
    (expected,) = torch.autograd.grad(mec_loss(p1, p2, z1, z2, 3.0), z1)
    for changed, same in (((other, p2), True), ((p1, other), False)):
        (gradient,) = torch.autograd.grad(mec_loss(*changed, z1, z2, 3.0), z1)
        assert torch.equal(gradient, expected) is same


def test_order_of_the_series_is_free():
    torch.manual_seed(0)
    p1, p2, z1, z2 = torch.randn(4, 5, 8)
    first = -(F.normalize(p1) * F.normalize(z2) + F.normalize(p2) * F.normalize(z1)).sum() / 10
    torch.testing.assert_close(mec_loss(p1, p2, z1, z2, 4.0, order=1), first)


def test_distortion_is_not_squared_again():
    assert inverse_lambda(256, 512, 64.0) == 256 * 64 / 512


def test_lambda_falls_from_eight_times_its_end_value_and_then_rests():
    recipe = dataclasses.replace(MECRecipe.tiny(), lambda_epochs=2, projection=2048)
    values = MEC(recipe).schedules(Plan(4, 5, 1024, images=5120))["inverse_lambda"]
    assert values[0] == 8 * 32.0
    np.testing.assert_allclose(values[:10], np.linspace(256, 32, 10))
    assert (values[9:] == 32.0).all()


def test_lambda_is_that_of_the_images_a_loss_sees():
    plan = Plan(4, 5, 1024, images=5120)
    whole, parts = (
        MEC(MECRecipe.tiny()).schedules(dataclasses.replace(plan, accumulate=n))["inverse_lambda"]
        for n in (1, 4)
    )
    np.testing.assert_allclose(parts, whole / 4)


@pytest.mark.parametrize("epochs", [0, 1, 9])
def test_warmups_may_be_absent_or_longer_than_the_run(epochs):
    recipe = dataclasses.replace(MECRecipe.tiny(), lambda_epochs=epochs, warmup_epochs=epochs)
    schedules = MEC(recipe).schedules(Plan(3, 4, 64, images=256))
    assert all(values.shape == (12,) and np.isfinite(values).all() for values in schedules.values())
    assert schedules["lr"].max() <= recipe.lr / 4


def test_peak_comes_twice():
    recipe = dataclasses.replace(MECRecipe.tiny(), warmup_epochs=2)
    lr = MEC(recipe).schedules(Plan(6, 5, 256, images=1280))["lr"]
    assert lr[0] == 0
    assert lr[9] == lr[10] == recipe.lr
    assert (lr == recipe.lr).sum() == 2


def test_momentum_has_no_warmup():
    momentum = tiny().schedules(Plan(3, 4, 64, images=256))["teacher_momentum"]
    assert momentum[0] == 0.98
    assert (np.diff(momentum) > 0).all()
    assert momentum[-1] < 1


def test_teacher_follows_the_updated_student_without_its_statistics():
    method = tiny()
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
        method.student.backbone.bn1.running_mean.fill_(5.0)
    expected = (method.teacher.projector[0].weight + method.student.projector[0].weight) / 2
    progress = Progress(Plan(1, 1, 4, 4), 0, {"teacher_momentum": 0.5, "inverse_lambda": 1.0})
    method.before_step(progress)
    assert not torch.allclose(method.teacher.projector[0].weight, expected)
    method.after_step(progress)
    torch.testing.assert_close(method.teacher.projector[0].weight, expected)
    assert not method.teacher.backbone.bn1.running_mean.any()


def test_teachers_statistics_are_those_of_its_own_passes():
    method = tiny().train()
    progress = Progress(Plan(1, 1, 4, 4), 0, {"inverse_lambda": 1.0})
    method(Views(list(torch.randn(2, 4, 3, 64, 64))), progress)
    assert method.teacher.backbone.bn1.num_batches_tracked == 2
    assert method.student.backbone.bn1.num_batches_tracked == 2


def test_everything_trainable_is_decayed_and_the_projectors_last_bias_rests():
    method = tiny()
    (group,) = method.parameter_groups()
    assert group.weight_decay == "weight_decay"
    names = {name for name, _ in group.parameters}
    assert "projector.6.weight" in names
    assert "projector.6.bias" not in names
    assert any(p.ndim == 1 for _, p in group.parameters)


def test_views_differ_in_blur_and_solarisation():
    first, second = tiny().views().crops
    assert (first.blur, first.solarise, second.blur, second.solarise) == (1.0, 0.0, 0.1, 0.2)
    assert {(c.scale, c.interpolation, c.flip_last, c.jitter) for c in (first, second)} == {
        ((0.2, 1.0), "bilinear", True, (0.4, 0.4, 0.2, 0.1))
    }


def test_loss_is_float32_whatever_the_forward_runs_in():
    method = tiny()
    outputs = torch.randn(2, 8, 256)
    method.student.forward = method.teacher.forward = lambda x: (x, torch.zeros(8, 4, 128))
    method.predictor = nn.Identity()
    progress, losses = Progress(Plan(1, 1, 8, 8), 0, {"inverse_lambda": 2.0}), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(method(Views(list(outputs)), progress).loss)
    assert losses[0] == losses[1]
