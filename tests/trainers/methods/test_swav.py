"""SwAV against vectors made with facebookresearch/swav, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dse_monitor.trainers.blocks import optim
from dse_monitor.trainers.blocks.objectives import sinkhorn
from dse_monitor.trainers.method import ParameterGroup, Plan, Progress, Views
from dse_monitor.trainers.methods.swav import (
    SwAV,
    SwAVRecipe,
    assignments,
    pushed,
    queue_is_full,
    swav_loss,
)

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
    constants = {"eta": g["larc.trust_coefficient"], "eps": g["larc.eps"]}
    layerwise_steps(
        g, "larc", recipe, {"lr": g["larc.lr"], "weight_decay": g["larc.weight_decay"], **constants}
    )


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


def test_prototypes_are_left_as_the_optimiser_made_them_until_the_next_step():
    method = SwAV(SwAVRecipe.tiny())
    method.student.prototypes.weight.data.mul_(7)
    progress = Progress(Plan(1, 1, 64, 64))
    method.after_backward(progress)
    method.after_step(progress)
    assert (method.student.prototypes.weight.norm(dim=1) > 2).all()
    method.before_step(progress)
    assert method.student.prototypes.weight.grad_fn is None


def test_loss_is_divided_by_the_other_crops_and_by_the_assignments():
    """Without an opinion every prediction costs log K, however many crops there are."""
    for crops in (2, 3, 8):
        targets = torch.softmax(torch.randn(2, 5, 6), -1)
        loss = swav_loss(torch.zeros(crops, 5, 6), targets, 0.1)
        assert loss.item() == pytest.approx(np.log(6), rel=1e-5)


def test_every_parameter_is_adapted_and_decayed():
    (group,) = SwAV(SwAVRecipe.tiny()).parameter_groups()
    names = {name for name, _ in group.parameters}
    assert {"backbone.bn1.weight", "backbone.bn1.bias", "projector.0.bias", "prototypes.weight"} <= names
    assert (group.weight_decay, group.adapt) == ("weight_decay", True)


def test_a_zero_norm_takes_the_raw_gradient_without_decay():
    recipe = SwAVRecipe(sgd_momentum=0.0)
    zero, still = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = optim.build(recipe, [ParameterGroup("all", [("zero", zero), ("still", still)])])
    optimizer.param_groups[0].update(lr=0.5, weight_decay=0.1)
    zero.grad, still.grad = torch.ones(3), torch.zeros(3)
    optimizer.step()
    assert torch.equal(zero.detach(), torch.full((3,), -0.5))
    assert torch.equal(still.detach(), torch.ones(3))


def test_each_crops_queue_holds_its_own_embeddings_newest_first():
    torch.manual_seed(0)
    queue = {"batch_size": 4, "queue_length": 12, "queue_from_epoch": 0}
    method = SwAV(dataclasses.replace(SwAVRecipe.tiny(), local_crops=0, **queue))
    seen = []
    method.student.register_forward_hook(lambda module, args, output: seen.append(output[0].detach()))
    plan = Plan(epochs=1, steps_per_epoch=2, batch_size=4, images=8)
    for step in range(2):
        images = [torch.randn(4, 3, 64, 64) for _ in range(2)]
        method(Views(images), Progress(plan, step))
        assert queue_fill(method.queue) == 4 * step  # not before the step is over
        method.after_step(Progress(plan, step))
    for crop in range(2):
        rows = slice(4 * crop, 4 * crop + 4)
        assert torch.equal(method.queue[crop][:8], torch.cat([seen[1][rows], seen[0][rows]]))


def queue_fill(queue):
    return int(queue[0].any(-1).sum())


def test_queue_joins_the_assignment_but_only_the_batch_is_returned():
    scores, queued = torch.rand(3, 5), torch.rand(7, 5)
    joined = sinkhorn(torch.cat([queued, scores]), 0.05, 3)
    assert torch.equal(assignments(scores, 0.05, 3, queued), joined[7:])


def test_confident_scores_do_not_overflow_in_half_precision():
    """exp(s / 0.05) leaves float16's range from 0.55 on, and cosines reach 1."""
    scores = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.9, 0.8]], dtype=torch.float16)
    for found in (sinkhorn(scores, 0.05, 3), assignments(scores, 0.05, 3)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(1), torch.ones(3))


def test_each_resolution_is_a_pass_of_the_backbone_and_all_crops_share_the_heads():
    method = SwAV(SwAVRecipe.tiny())
    images = [torch.randn(4, 3, size, size) for size in (64, 64, 32, 32)]
    with torch.no_grad():
        out = method(Views(images), Progress(Plan(1, 1, 4, 4)))
    assert method.student.backbone.bn1.num_batches_tracked == 2
    assert method.student.projector[1].num_batches_tracked == 1
    assert len(out.dense) == 8


def test_residual_norms_start_at_one():
    weight = SwAV(SwAVRecipe.tiny()).student.backbone.layer1[0].bn2.weight
    assert torch.equal(weight, torch.ones_like(weight))


def test_images_are_normalised_and_coloured_as_released():
    assert SwAV.std == (0.228, 0.224, 0.225)
    large, _, small, _ = SwAV(SwAVRecipe.tiny()).views().crops
    for crop in (large, small):
        assert (crop.jitter, crop.blur, crop.solarise) == ((0.8, 0.8, 0.8, 0.2), 0.5, 0.0)
        assert (crop.interpolation, crop.flip_last) == ("bilinear", False)
    assert (large.scale, small.scale) == ((0.14, 1.0), (0.05, 0.14))


def test_small_batch_preset_is_the_official_script():
    r = SwAVRecipe.batch256()
    assert (r.batch_size, r.epochs, r.warmup_epochs, r.lr, r.final_lr) == (256, 200, 0, 0.6, 0.0006)
    assert (r.freeze_prototypes_steps, r.queue_length, r.queue_from_epoch) == (5005, 3840, 15)
    lr = SwAV(dataclasses.replace(r, backbone="resnet_mini")).schedules(Plan(200, 10, 256, 2560))["lr"]
    assert lr[0] == 0.6  # no warmup, and no scaling by the batch
