"""VICRegL against vectors made with facebookresearch/VICRegL, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.method import Plan
from trainers.methods.vicregl import (
    VICRegL,
    VICRegLRecipe,
    global_terms,
    learning_rates,
    local_terms,
    nearest,
    places_of,
    take,
)

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def g(golden):
    return golden("vicregl")


def weighted(g, terms):
    return [g[f"{name}_coeff"] * term for name, term in zip(("inv", "var", "cov"), terms, strict=True)]


def places(g):
    return [g[f"location.{v}"].flatten(1, 2) for v in range(g["num_views"])]


def test_losses_and_gradients_equal_official(g):
    views = range(g["num_views"])
    maps = [g[f"maps.{v}"].clone().requires_grad_() for v in views]
    embeddings = [g[f"embedding.{v}"].clone().requires_grad_() for v in views]
    matches = (g["num_matches_0"], g["num_matches_1"])
    whole = weighted(g, global_terms(embeddings))
    local = weighted(g, local_terms(maps, places(g), matches, all_feature_matches=bool(g["l2_all_matches"])))
    loss = g["alpha"] * sum(whole) + (1 - g["alpha"]) * sum(local)
    loss.backward()
    for name, global_term, local_term in zip(("inv", "var", "cov"), whole, local, strict=True):
        torch.testing.assert_close(global_term.detach(), g[f"global_{name}"], **LOSS)
        torch.testing.assert_close(local_term.detach(), g[f"local_{name}"], **LOSS)
    torch.testing.assert_close(loss.detach(), g["loss_ssl"], **LOSS)
    for v in views:
        torch.testing.assert_close(maps[v].grad, g[f"grad_maps.{v}"], **GRADIENT)
        torch.testing.assert_close(embeddings[v].grad, g[f"grad_embedding.{v}"], **GRADIENT)


def test_local_loss_with_few_feature_matches_equals_official(g):
    maps = [g[f"maps.{v}"] for v in range(g["num_views"])]
    matches = (g["num_matches_0"], g["num_matches_1"])
    terms = weighted(g, local_terms(maps, places(g), matches, all_feature_matches=False))
    for name, term in zip(("inv", "var", "cov"), terms, strict=True):
        torch.testing.assert_close(term, g[f"variant_l2_topk.local_{name}"], **LOSS)


def test_matches_equal_official(g):
    first, second = g["maps.0"], g["maps.1"]
    for name, keep in (("all", None), ("topk", g["num_matches_0"])):
        pairs = nearest(first, second, keep)
        assert torch.equal(pairs.source, g[f"match.feature_{name}.src_0to1"])
        assert torch.equal(pairs.candidate, g[f"match.feature_{name}.dst_0to1"])
    here, there = places(g)[:2]
    pairs = nearest(here, there, g["num_matches_0"])
    assert torch.equal(pairs.source, g["match.location.src_0to1"])
    assert torch.equal(pairs.candidate, g["match.location.dst_0to1"])
    torch.testing.assert_close(take(first, pairs.source), g["match.location.maps_src"], rtol=0, atol=0)
    torch.testing.assert_close(take(second, pairs.candidate), g["match.location.maps_dst"], rtol=0, atol=0)
    back = nearest(there, here, g["num_matches_1"])
    assert torch.equal(back.source, g["match.location.src_1to0"])
    assert torch.equal(back.candidate, g["match.location.dst_1to0"])


def test_places_equal_official(g):
    top, left, height, width = g["grid.rect"][:4].tolist()
    for flipped, name in ((False, "noflip"), (True, "flip")):
        ours = places_of((top, left, height, width), g["grid.N"], flipped=flipped)
        torch.testing.assert_close(ours.double(), g[f"grid.{name}"].double(), rtol=1e-5, atol=1e-4)


def test_places_of_the_crops_equal_official(g):
    for v in range(g["num_views"]):
        for rect, expected in zip(g[f"crop_rect.{v}"].tolist(), g[f"location.{v}"], strict=True):
            ours = places_of(tuple(rect[:4]), len(expected))
            torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-5, atol=1e-4)


def test_schedule_equals_official(g):
    peak = g["sched.base_lr"] * g["sched.bs"] / 256
    expected = g["sched.lr_per_step"].numpy()
    ours = learning_rates(
        peak, g["sched.end_lr_ratio"], g["sched.total_steps"], g["sched.warmup_steps"], len(expected)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    recipe = dataclasses.replace(VICRegLRecipe.tiny(), lr=g["sched.base_lr"], warmup_epochs=g["sched.warm"])
    plan = Plan(g["sched.epochs"], g["sched.n"] // g["sched.bs"], g["sched.bs"], g["sched.n"])
    lr = VICRegL(recipe).schedules(plan)["lr"]
    np.testing.assert_allclose(lr, expected[: g["sched.total_steps"]], rtol=1e-9)


def test_optimiser_steps_equal_official(g, layerwise_steps):
    recipe = VICRegLRecipe(sgd_momentum=g["lars.momentum"])
    layerwise_steps(
        g, "lars", recipe, {"lr": g["lars.lr"], "weight_decay": g["lars.weight_decay"]}, {"lr": g["lars.lr"]}
    )


def test_small_crops_have_their_own_grid():
    recipe = dataclasses.replace(VICRegLRecipe.tiny(), image_size=96, local_size=64, local_crops=1)
    views = VICRegL(recipe).views()(Image.new("RGB", (120, 100)))
    assert [tuple(image.shape) for image in views.images] == [(3, 96, 96), (3, 96, 96), (3, 64, 64)]
    assert [tuple(views.extra[f"places_{v}"].shape) for v in range(3)] == [(3, 3, 2), (3, 3, 2), (2, 2, 2)]
    assert views.extra["places_2"][..., 0].max() < 100
    assert views.extra["places_2"][..., 1].max() < 120
