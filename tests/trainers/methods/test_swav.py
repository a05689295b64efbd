"""SwAV against vectors made with facebookresearch/swav, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainers.method import Plan, Progress, Views
from trainers.methods.swav import (
    SwAV,
    SwAVRecipe,
    assignments,
    pushed,
    queue_is_full,
    swav_loss,
)
from trainers.objectives import sinkhorn

LOSS = {"rtol": 1e-5, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol": 1e-7}


@pytest.fixture(scope="module")
def g(golden):
    return golden("swav")


def test_sinkhorn_equals_official(g):
    ours = sinkhorn(g["sinkhorn.scores"], g["epsilon"], g["sinkhorn_iterations"])
    torch.testing.assert_close(ours, g["sinkhorn.assignment"], **LOSS)
    torch.testing.assert_close(F.normalize(g["prototypes_raw"]), g["prototypes_normalized"], **LOSS)


@pytest.mark.parametrize("case", ["noqueue", "emptyqueue", "queue"])
def test_loss_gradients_assignments_and_queue_equal_official(g, case):
    embedding = g["embedding"].clone().requires_grad_()
    prototypes = g["prototypes_normalized"].clone().requires_grad_()
    queue = g.get(f"{case}.queue_before")
    scores = F.linear(embedding, prototypes).unflatten(0, (g["num_views"], g["batch_size"]))
    targets = []
    for i in range(2):
        use = queue is not None and queue_is_full(queue[i])
        queued = F.linear(queue[i], prototypes).detach() if use else None
        targets.append(assignments(scores[i], g["epsilon"], g["sinkhorn_iterations"], queued))
    targets = torch.stack(targets)
    loss = swav_loss(scores, targets, g["temperature"])
    loss.backward()
    torch.testing.assert_close(targets, g[f"{case}.assignments"], **LOSS)
    torch.testing.assert_close(loss.detach(), g[f"{case}.loss"], **LOSS)
    torch.testing.assert_close(embedding.grad, g[f"{case}.grad_embedding"], **GRADIENT)
    torch.testing.assert_close(prototypes.grad, g[f"{case}.grad_prototypes"], **GRADIENT)
    if queue is not None:
        large = g["embedding"].unflatten(0, (g["num_views"], g["batch_size"]))[:2]
        after = torch.stack([pushed(*pair) for pair in zip(queue, large, strict=True)])
        torch.testing.assert_close(after, g[f"{case}.queue_after"], rtol=0, atol=0)


def test_schedule_equals_official(g):
    recipe = SwAVRecipe(
        backbone="resnet_mini",
        prototypes=4,
        lr=g["sched.base_lr"],
        start_lr=g["sched.start_warmup"],
        final_lr=g["sched.final_lr"],
        warmup_epochs=g["sched.warmup_epochs"],
    )
    plan = Plan(g["sched.epochs"], g["sched.iters_per_epoch"], 64, images=1)
    schedules = SwAV(recipe).schedules(plan)
    np.testing.assert_allclose(schedules["lr"], g["sched.lr_per_step"].numpy(), rtol=1e-9)


def test_optimiser_steps_equal_official(g, layerwise_steps):
    recipe = SwAVRecipe(sgd_momentum=g["larc.momentum"])
    layerwise_steps(g, "larc", recipe, {"lr": g["larc.lr"], "weight_decay": g["larc.weight_decay"]})


def test_prototypes_sit_out_the_first_steps():
    method = SwAV(SwAVRecipe.tiny())
    weight = method.student.prototypes.weight
    plan = Plan(1, 20, 64, images=1280)
    for step, frozen in ((9, True), (10, False)):
        weight.grad = torch.ones_like(weight)
        method.after_backward(Progress(plan, step))
        assert (weight.grad is None) is frozen


def test_prototypes_are_unit_before_each_step():
    method = SwAV(SwAVRecipe.tiny())
    method.student.prototypes.weight.data.mul_(7)
    method.before_step(Progress(Plan(1, 1, 64, 64)))
    torch.testing.assert_close(method.student.prototypes.weight.norm(dim=1), torch.ones(128))


def test_queue_refuses_a_batch_that_does_not_fit():
    with pytest.raises(ValueError, match="raise queue_length"):
        pushed(torch.zeros(4, 2), torch.ones(5, 2))


def test_queue_fills_from_its_epoch_on_and_is_used_once_full():
    queue = {"batch_size": 4, "queue_length": 9, "queue_from_epoch": 1}
    recipe = dataclasses.replace(SwAVRecipe.tiny(), local_crops=0, **queue)
    method = SwAV(recipe)
    assert method.queue.shape == (2, 8, 64)  # whole batches only
    plan = Plan(epochs=4, steps_per_epoch=1, batch_size=4, images=4)
    filled = []
    for step in range(3):
        views = Views([torch.randn(4, 3, 64, 64) for _ in range(2)])
        method(views, Progress(plan, step))
        method.after_step(Progress(plan, step))
        filled.append(int(method.queue.any(-1).sum(1).unique().item()))
    assert filled == [0, 4, 8]
    assert queue_is_full(method.queue[0])
    assert method._queued_scores(0).shape == (8, recipe.prototypes)
