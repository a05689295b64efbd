"""Heads, queues, centres, teachers, groups: the small parts methods are made of."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dse_monitor.trainers import distributed
from dse_monitor.trainers.blocks import optim, teacher
from dse_monitor.trainers.blocks.centre import Centre
from dse_monitor.trainers.blocks.heads import Prototypes, mlp
from dse_monitor.trainers.blocks.objectives import (
    mean_over_distinct,
    off_diagonal,
    pair_cross_entropies,
    sinkhorn,
)
from dse_monitor.trainers.blocks.queues import KeyQueue
from dse_monitor.trainers.method import ParameterGroup
from dse_monitor.trainers.methods.dino import DINORecipe


def test_mlp_numbers_its_layers_as_the_authors_do():
    swav = mlp((6, 5, 4))
    assert [n for n, _ in swav.named_parameters()] == [
        f"{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")
    ]
    moco = mlp((6, 5, 5, 4), bias=False, last_bias=False, last_norm="plain")
    assert [n for n, _ in moco.named_parameters() if n.endswith("weight")] == [
        "0.weight",
        "1.weight",
        "3.weight",
        "4.weight",
        "6.weight",
    ]
    assert "7.running_mean" in moco.state_dict()
    with pytest.raises(ValueError, match="last_norm"):
        mlp((2, 2), last_norm="batch")


def test_mlp_takes_another_norm():
    layers = mlp((4, 3, 3, 2), norm=nn.LayerNorm)
    assert [type(m) for m in layers][1::3] == [nn.LayerNorm, nn.LayerNorm]


def test_prototype_logits_are_cosines_times_the_scale():
    layer = Prototypes(4, 3, trainable_scale=True)
    with torch.no_grad():
        layer.weight_g.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
    x = F.normalize(torch.randn(5, 4), dim=1)
    cosines = x @ F.normalize(layer.weight_v, dim=1).T
    torch.testing.assert_close(layer(x), cosines * torch.tensor([1.0, 2.0, 3.0]))
    assert not Prototypes(4, 3, trainable_scale=False).weight_g.requires_grad


def test_queue_overwrites_the_oldest_and_wraps():
    queue = KeyQueue(2, 5)
    keys = torch.arange(14.0).view(7, 2)
    queue.push(keys[:3])
    queue.push(keys[3:])
    assert queue.pointer.item() == 2
    assert torch.equal(queue.columns.T, keys[[5, 6, 2, 3, 4]])
    with pytest.raises(ValueError, match="longer"):
        queue.push(torch.zeros(6, 2))


def test_centre_moves_once_by_the_mean_of_all_micro_batches():
    centre = Centre(1, 3, momentum=0.9)
    rows = torch.randn(8, 3)
    centre.observe(rows[:4])
    centre.observe(rows[4:])
    assert not centre.value.any()
    centre.update()
    torch.testing.assert_close(centre.value, 0.1 * rows.mean(0, keepdim=True))
    centre.update()  # nothing new was seen
    torch.testing.assert_close(centre.value, 0.1 * rows.mean(0, keepdim=True))


def test_teacher_averages_parameters_and_leaves_buffers():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averaged = teacher.frozen_copy(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
        student[1].running_mean.fill_(5)
    teacher.ema_update(averaged, student, 0.75)
    torch.testing.assert_close(averaged[0].weight, student[0].weight - 0.75)
    assert not averaged[1].running_mean.any()
    assert not any(p.requires_grad for p in averaged.parameters())
    with pytest.raises(KeyError, match="no parameter"):
        teacher.ema_update(averaged, nn.Linear(2, 2), 0.5)


def test_sinkhorn_rows_sum_to_one_and_columns_balance():
    q = sinkhorn(torch.randn(12, 4), epsilon=0.5, iterations=50)
    torch.testing.assert_close(q.sum(1), torch.ones(12))
    torch.testing.assert_close(q.sum(0), torch.full((4,), 3.0), rtol=1e-3, atol=1e-3)


def test_pair_entropies_equal_the_loop_they_stand_for():
    student, targets = torch.randn(4, 3, 5), torch.softmax(torch.randn(2, 3, 5), -1)
    table = pair_cross_entropies(student, targets, 0.1)
    for i in range(2):
        for v in range(4):
            loop = -(targets[i] * F.log_softmax(student[v] / 0.1, -1)).sum(-1).mean()
            torch.testing.assert_close(table[i, v], loop)
    pairs = [table[i, v] for i in range(2) for v in range(4) if v != i]
    torch.testing.assert_close(mean_over_distinct(table), torch.stack(pairs).mean())


def test_off_diagonal_drops_exactly_the_diagonal():
    matrix = torch.arange(18.0).view(2, 3, 3)
    assert off_diagonal(matrix)[0].tolist() == [1, 2, 3, 5, 6, 7]
    assert off_diagonal(matrix).shape == (2, 6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "lars_inner", "larc"])
def test_every_optimiser_leaves_parameters_without_gradient_alone(name):
    moving, still = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))
    recipe = dataclasses.replace(DINORecipe.tiny(), optimizer=name)
    optimizer = optim.build(recipe, [ParameterGroup("all", [("a", moving), ("b", still)])])
    optimizer.param_groups[0].update(lr=0.1, weight_decay=0.1)
    moving.grad = torch.ones_like(moving)
    optimizer.step()
    assert (moving != 1).all()
    assert (still == 1).all()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "lars_inner", "larc"])
def test_a_first_gradient_that_comes_late_moves_as_a_first_gradient_does(name, fused):
    """As of prototypes after the epochs in which they are frozen."""
    early, late = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.full((3, 2), 2.0))
    recipe = dataclasses.replace(DINORecipe.tiny(), optimizer=name)
    optimizer = optim.build(recipe, [ParameterGroup("all", [("a", early), ("b", late)])], fused=fused)
    optimizer.param_groups[0].update(lr=0.1, weight_decay=0.1)
    early.grad = torch.ones_like(early)
    optimizer.step()
    late.grad = torch.ones_like(late)
    optimizer.step()
    alone = nn.Parameter(torch.full((3, 2), 2.0))
    optimizer = optim.build(recipe, [ParameterGroup("all", [("b", alone)])])
    optimizer.param_groups[0].update(lr=0.1, weight_decay=0.1)
    alone.grad = torch.ones_like(alone)
    optimizer.step()
    torch.testing.assert_close(late.detach(), alone.detach())


def test_wrong_optimisers_and_doubled_parameters_are_refused():
    weight = nn.Parameter(torch.ones(2))
    group = ParameterGroup("all", [("w", weight)])
    with pytest.raises(ValueError, match="expected adamw"):
        optim.build(dataclasses.replace(DINORecipe.tiny(), optimizer="adam"), [group])
    with pytest.raises(ValueError, match="two groups"):
        optim.build(DINORecipe.tiny(), [group, group])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_synchronised_batch_norm_gives_back_the_type_it_got(dtype, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)  # two processes with the same batch
    monkeypatch.setattr(distributed, "_all_reduce_with_gradient", lambda tensor: 2 * tensor)
    plain = nn.BatchNorm2d(3, dtype=torch.float64 if dtype == torch.float64 else None)
    holder = nn.Sequential(plain)
    synced = distributed.synchronise_batchnorm(holder, torch.device("cpu"))[0]
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = synced(images)
    assert found.dtype == dtype
    wanted = nn.functional.batch_norm(images.double(), None, None, training=True)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=1e-2)
    assert synced.running_mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
