"""DenseCL against vectors made with WXinlong/DenseCL, at the tolerances of its fact sheet."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dse_monitor.trainers.blocks import teacher
from dse_monitor.trainers.blocks.objectives import queue_contrast
from dse_monitor.trainers.blocks.queues import KeyQueue
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.densecl import DenseCL, DenseCLRecipe, Neck, correspondence, dense_contrast

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


@pytest.fixture
def method():
    torch.manual_seed(0)
    return DenseCL(DenseCLRecipe.tiny())


STEP = Progress(Plan(1, 1, 4, 4))


def pair():
    return [torch.randn(4, 3, 64, 64) for _ in range(2)]


def test_first_view_asks_second_answers_and_each_term_is_weighted_once(method):
    """Matches are by backbone features, negatives those before this step, the sum (1 - lambda, lambda)."""
    images, r = pair(), method.recipe
    with torch.no_grad():
        query, key = method.student(images[0]), method.teacher(images[1])
        matches = correspondence(query.features, key.features)
        image = queue_contrast(F.normalize(query.image), F.normalize(key.image), method.queue.columns, 0.2)
        dense = dense_contrast(query.grid, key.grid, matches, method.dense_queue.columns, 0.2)
        out = method(Views(images), STEP)
    assert r.dense_weight == 0.5
    torch.testing.assert_close(out.logs["image_loss"], image, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.logs["dense_loss"], dense, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.loss, (image + dense) / 2, rtol=1e-5, atol=0)


def test_several_queries_may_share_a_key():
    queries = torch.tensor([[[1.0, 0.0], [5.0, 0.1], [0.0, 1.0]]])
    keys = torch.tensor([[[0.0, 9.0], [0.1, 0.0]]])
    assert correspondence(queries, keys).tolist() == [[1, 1, 0]]


def test_matching_carries_no_gradient(method):
    query = method.student(pair()[0])
    assert not correspondence(query.features, query.features).requires_grad
    keys = torch.randn(2, 3, 4, requires_grad=True)
    queries = torch.randn(2, 3, 4, requires_grad=True)
    queue = F.normalize(torch.randn(4, 6), dim=0).requires_grad_()
    dense_contrast(queries, keys, torch.zeros(2, 3, dtype=torch.long), queue, 0.2).backward()
    assert queries.grad is not None
    assert keys.grad is None
    assert queue.grad is None


def test_dense_loss_is_the_mean_over_all_positions():
    queries, keys, queue = torch.randn(2, 3, 4), torch.randn(2, 3, 4), F.normalize(torch.randn(4, 6), dim=0)
    matches = torch.randint(0, 3, (2, 3))
    terms = [
        queue_contrast(
            F.normalize(queries[b, n : n + 1]), F.normalize(keys[b, matches[b, n]][None]), queue, 0.2
        )
        for b in range(2)
        for n in range(3)
    ]
    torch.testing.assert_close(dense_contrast(queries, keys, matches, queue, 0.2), torch.stack(terms).mean())


def test_queues_take_image_keys_and_normalised_means_of_position_keys_after_the_step(method):
    images = pair()
    with torch.no_grad():
        key = method.teacher(images[1])
    before = method.queue.columns.clone(), method.dense_queue.columns.clone()
    with torch.no_grad():
        method(Views(images), STEP)
    assert torch.equal(method.queue.columns, before[0])
    assert torch.equal(method.dense_queue.columns, before[1])
    method.after_step(STEP)
    torch.testing.assert_close(method.queue.columns[:, :4].T, F.normalize(key.image))
    torch.testing.assert_close(method.dense_queue.columns[:, :4].T, F.normalize(key.grid.mean(1)))
    assert torch.equal(method.queue.columns[:, 4:], before[0][:, 4:])
    assert method.queue.pointer.item() == method.dense_queue.pointer.item() == 4


def test_key_network_follows_the_weights_of_the_step_before_with_norm_statistics_of_its_own(method):
    weight, key = method.student.neck.image[0].weight, method.teacher.neck.image[0].weight
    before = key.detach().clone()
    weight.data.add_(1)
    method.student.backbone.bn1.running_mean.fill_(7)
    method.before_step(STEP)
    torch.testing.assert_close(key.detach(), before + 1 - method.recipe.teacher_momentum)
    method.after_step(STEP)
    torch.testing.assert_close(key.detach(), before + 1 - method.recipe.teacher_momentum)
    assert not method.teacher.backbone.bn1.running_mean.any()


def test_network_starts_as_released(method):
    """Convolutions and image head by fan-in; residual norms at one; the dense head as torch starts it."""
    block, neck = method.student.backbone.layer4[0], method.student.neck
    assert torch.equal(block.bn2.weight, torch.ones_like(block.bn2.weight))
    for weight in (block.conv1.weight, neck.image[0].weight):
        assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.05)
    assert not neck.image[0].bias.any()
    assert neck.grid[0].weight.abs().max() <= neck.grid[0].in_features ** -0.5
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in neck.modules())


def test_dense_tokens_are_the_querys_map_as_it_is(method):
    images = pair()
    out = method(Views(images), STEP)
    expected = method.student.backbone.forward_features(images[0]).flatten(2).mT
    torch.testing.assert_close(out.dense, expected)
    assert out.dense.requires_grad


def test_norms_are_not_synchronised_and_the_query_network_is_measured():
    assert not DenseCL.sync_batchnorm
    assert DenseCL.evaluated == "student.backbone."


def test_everything_is_decayed_and_coco_differs_in_two_numbers(method):
    (group,) = method.parameter_groups()
    assert "backbone.bn1.bias" in {name for name, _ in group.parameters}
    assert group.weight_decay == "weight_decay"
    imagenet, coco = DenseCLRecipe(), DenseCLRecipe.coco()
    changed = {k for k, v in vars(coco).items() if v != getattr(imagenet, k)}
    assert changed == {"lr", "epochs"}
    assert (coco.lr, coco.epochs) == (0.3, 800)
