"""ReSA against vectors made with winci-ai/resa, at the tolerances of its fact sheet."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainers import teacher
from trainers.method import Plan
from trainers.methods.resa import ReSA, ReSARecipe, assignment, resa_loss
from trainers.objectives import sinkhorn

ASSIGNMENT = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}


@pytest.fixture(scope="module")
def g(golden):
    return golden("resa")


def test_assignment_equals_official(g):
    h, h_momentum = g["h_online"][0], g["h_momentum"][0]
    torch.testing.assert_close(F.normalize(h) @ F.normalize(h_momentum).T, g["scores"], **ASSIGNMENT)
    ours = assignment(h, h_momentum, g["sinkhorn_temperature"], g["sinkhorn_iterations"])
    torch.testing.assert_close(ours, g["assignment"], **ASSIGNMENT)
    alone = sinkhorn(g["sinkhorn.scores"], g["sinkhorn.temp"], g["sinkhorn.iterations"])
    torch.testing.assert_close(alone, g["sinkhorn.assignment"], **ASSIGNMENT)


def test_loss_and_gradient_equal_official(g):
    online = g["emb_online"].clone().requires_grad_()
    loss = resa_loss(list(online), list(g["emb_momentum"]), g["assignment"], g["temperature"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["loss"], **ASSIGNMENT)
    torch.testing.assert_close(online.grad, g["grad_emb_online"], **GRADIENT)


def test_momentum_update_equals_official(g):
    online, momentum = nn.Module(), nn.Module()
    online.w = nn.Parameter(g["ema.online_weight"].clone())
    momentum.w = nn.Parameter(g["ema.before"].clone())
    teacher.ema_update(momentum, online, g["ema.momentum"])
    torch.testing.assert_close(momentum.w.data, g["ema.after"], rtol=1e-6, atol=1e-7)


def test_schedules_equal_official(g):
    recipe = ReSARecipe(
        backbone="resnet_mini",
        lr=g["sched.base_lr"],
        warmup_epochs=g["sched.warmup_epochs"],
        teacher_momentum=g["sched.base_momentum"],
    )
    batch = g["sched.batch_per_gpu"] * g["sched.world_size"]
    schedules = ReSA(recipe).schedules(Plan(g["sched.epochs"], g["sched.iters_per_epoch"], batch, images=1))
    np.testing.assert_allclose(schedules["lr"], g["sched.lr_per_step"].numpy(), rtol=1e-9)
    np.testing.assert_allclose(schedules["teacher_momentum"], g["sched.momentum_per_step"].numpy(), rtol=1e-9)
    assert schedules["lr"].max() == pytest.approx(g["sched.peak_lr"])


def test_first_view_is_weak():
    weak, strong = ReSA(ReSARecipe.tiny()).views().crops
    assert (weak.jitter_probability, weak.grey, weak.blur, weak.interpolation) == (0.0, 0.0, 0.0, "bilinear")
    assert (strong.jitter_probability, strong.blur, strong.solarise, strong.interpolation) == (
        0.8,
        0.5,
        0.2,
        "bicubic",
    )
