"""MEC against vectors made with xinliu20/MEC, at the tolerances of its fact sheet."""

import numpy as np
import pytest
import torch
from torch import nn

from trainers import teacher
from trainers.method import Plan
from trainers.methods.mec import MEC, MECRecipe, coding_trace, inverse_lambda, mec_loss

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}


@pytest.fixture(scope="module")
def g(golden):
    return golden("mec")


def test_loss_and_gradients_equal_official(g):
    z1, z2, p1, p2 = (g[name].clone().requires_grad_() for name in ("z1", "z2", "p1", "p2"))
    loss = mec_loss(p1, p2, z1, z2, g["lamda_inv"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["loss"], **LOSS)
    torch.testing.assert_close(z1.grad, g["grad_z1"], **GRADIENT)
    torch.testing.assert_close(z2.grad, g["grad_z2"], **GRADIENT)
    assert p1.grad is None
    assert p2.grad is None


@pytest.mark.parametrize("order", range(1, 7))
def test_series_of_every_order_equals_official(g, order):
    for a, b in (("p1", "z2"), ("p2", "z1")):
        ours = coding_trace(g[a], g[b], g["lamda_inv"], order)
        torch.testing.assert_close(ours, g[f"trace_{a}_{b}_by_order"][order - 1], rtol=1e-5, atol=1e-6)


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
