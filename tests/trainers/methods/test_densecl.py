"""DenseCL against vectors made with WXinlong/DenseCL, at the tolerances of its fact sheet."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainers import teacher
from trainers.method import Plan
from trainers.methods.densecl import DenseCL, DenseCLRecipe, Neck, correspondence, dense_contrast
from trainers.objectives import queue_contrast
from trainers.queues import KeyQueue

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}


@pytest.fixture(scope="module")
def g(golden):
    return golden("densecl")


def test_consecutive_steps_equal_official(g):
    queues = []
    for name in ("queue_before", "queue2_before"):
        queue = KeyQueue(len(g[name]), g["queue_len"])
        queue.columns = g[name].clone()
        queues.append(queue)
    queue, dense_queue = queues
    for t in range(g["steps"]):
        step = {key.split(".", 1)[1]: value for key, value in g.items() if key.startswith(f"step{t}.")}
        q, q_grid = step["q"].clone().requires_grad_(), step["q_grid"].clone().requires_grad_()
        matches = correspondence(step["q_backbone"].mT, step["k_backbone"].mT)
        assert torch.equal(matches, step["correspondence"])
        image = queue_contrast(F.normalize(q), F.normalize(step["k"]), queue.columns, g["temperature"])
        dense = dense_contrast(q_grid.mT, step["k_grid"].mT, matches, dense_queue.columns, g["temperature"])
        loss = (1 - g["loss_lambda"]) * image + g["loss_lambda"] * dense
        loss.backward()
        torch.testing.assert_close(image.detach(), step["loss_single"], **LOSS)
        torch.testing.assert_close(dense.detach(), step["loss_dense"], **LOSS)
        torch.testing.assert_close(loss.detach(), step["loss"], **LOSS)
        torch.testing.assert_close(q.grad, step["grad_q"], **GRADIENT)
        torch.testing.assert_close(q_grid.grad, step["grad_q_grid"], **GRADIENT)
        queue.push(F.normalize(step["k"]))
        dense_queue.push(F.normalize(step["k2"]))
        torch.testing.assert_close(queue.columns, step["queue_after"], rtol=0, atol=1e-6)
        torch.testing.assert_close(dense_queue.columns, step["queue2_after"], rtol=0, atol=1e-6)
        assert queue.pointer.item() == step["queue_ptr_after"]
        assert dense_queue.pointer.item() == step["queue2_ptr_after"]


def test_neck_equals_official(g):
    hidden, width = g["neck.param.mlp.0.weight"].shape
    neck = Neck(width, hidden, len(g["neck.param.mlp.2.weight"]))
    state = {}
    for ours, theirs in (("image", "mlp"), ("grid", "mlp2")):
        for layer in ("0", "2"):
            state[f"{ours}.{layer}.weight"] = g[f"neck.param.{theirs}.{layer}.weight"].flatten(1)
            state[f"{ours}.{layer}.bias"] = g[f"neck.param.{theirs}.{layer}.bias"]
    neck.load_state_dict(state)
    x = g["neck.x"]
    out = neck(x.mean((2, 3)), x.flatten(2).mT)
    torch.testing.assert_close(out.image.detach(), g["neck.global"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.grid.detach().mT, g["neck.grid"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.pooled.detach(), g["neck.grid_pooled"], rtol=1e-4, atol=1e-6)


def test_key_update_equals_official(g):
    query, key = nn.Module(), nn.Module()
    query.w = nn.Parameter(g["ema.q_weight"].clone())
    key.w = nn.Parameter(g["ema.k_before"].clone())
    teacher.ema_update(key, query, g["ema.momentum"])
    torch.testing.assert_close(key.w.data, g["ema.k_after"], rtol=1e-6, atol=1e-7)


def test_schedule_equals_official(g):
    recipe = DenseCLRecipe(backbone="resnet_mini", lr=g["sched.base_lr"], queue_length=256)
    schedules = DenseCL(recipe).schedules(Plan(g["sched.epochs"], 3, 256, images=768))
    np.testing.assert_allclose(schedules["lr"][::3], g["sched.lr_per_epoch"].numpy(), rtol=1e-9, atol=1e-18)


def test_queue_that_the_batch_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of batch_size"):
        DenseCL(DenseCLRecipe(backbone="resnet_mini", queue_length=1000))
