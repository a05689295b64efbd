"""VICRegL against vectors made with facebookresearch/VICRegL, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods import vicregl
from dse_monitor.trainers.methods.vicreg import vicreg_terms
from dse_monitor.trainers.methods.vicregl import (
    VICRegL,
    VICRegLRecipe,
    global_terms,
    learning_rates,
    local_terms,
    matched_terms,
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
    recipe = dataclasses.replace(
        VICRegLRecipe.tiny(),
        lr=g["sched.base_lr"],
        warmup_epochs=g["sched.warm"],
        final_lr_fraction=g["sched.end_lr_ratio"],
    )
    plan = Plan(g["sched.epochs"], g["sched.n"] // g["sched.bs"], g["sched.bs"], g["sched.n"])
    lr = VICRegL(recipe).schedules(plan)["lr"]
    np.testing.assert_allclose(lr, expected[: plan.total_steps], rtol=1e-9)


def test_optimiser_steps_equal_official(g, layerwise_steps):
    recipe = VICRegLRecipe(sgd_momentum=g["lars.momentum"])
    weights = {"lr": g["lars.lr"], "weight_decay": g["lars.weight_decay"], "eta": g["lars.eta"]}
    layerwise_steps(g, "lars", recipe, weights, {"lr": g["lars.lr"]})


def test_small_crops_have_their_own_grid():
    recipe = dataclasses.replace(VICRegLRecipe.tiny(), image_size=96, local_size=64, local_crops=1)
    views = VICRegL(recipe).views()(Image.new("RGB", (120, 100)))
    assert [tuple(image.shape) for image in views.images] == [(3, 96, 96), (3, 96, 96), (3, 64, 64)]
    assert [tuple(views.extra[f"places_{v}"].shape) for v in range(3)] == [(3, 3, 2), (3, 3, 2), (2, 2, 2)]
    assert views.extra["places_2"][..., 0].max() < 100
    assert views.extra["places_2"][..., 1].max() < 120


@pytest.mark.parametrize(
    ("backbone", "grids"), [("resnet_mini", (2, 2)), ("convnext_mini", (2, 1)), ("swin_mini_patch4", (4, 3))]
)
def test_grids_are_those_of_the_maps_where_a_side_does_not_divide(backbone, grids):
    method = tiny_convnext(backbone=backbone, local_size=48)
    assert method.views().grids == (grids[0], grids[0], grids[1], grids[1])
    views = views_of(method)
    maps = [backbones.features(method.student.backbone, images).dense for images in views.images]
    assert [m.shape[1] for m in maps] == [n * n for n in method.views().grids]
    assert method(views, progress()).loss.isfinite()


# What is easily got wrong, one claim each ------------------------------------------------------------------

BATCH = 6


def tiny(**options):
    torch.manual_seed(0)
    return VICRegL(dataclasses.replace(VICRegLRecipe.tiny(), **options))


def tiny_convnext(**options):
    recipe = dataclasses.replace(VICRegLRecipe.convnext(), backbone="convnext_mini", image_size=64)
    sizes = {"local_size": 32, "local_crops": 2, "expander_width": 16, "map_expander_width": 16}
    torch.manual_seed(0)
    return VICRegL(dataclasses.replace(recipe, matches=(3, 1), **{**sizes, **options}))


def views_of(method, batch=BATCH):
    """Random crops at random places."""
    transform = method.views()
    images = [torch.randn(batch, 3, crop.size, crop.size) for crop in transform.crops]
    grids = transform.grids
    return Views(images, {f"places_{v}": torch.rand(batch, n, n, 2) for v, n in enumerate(grids)})


def progress():
    return Progress(Plan(1, 1, BATCH, BATCH))


def test_features_are_matched_by_their_projections(monkeypatch):
    seen = []
    monkeypatch.setattr(vicregl, "nearest", lambda a, b, keep: seen.append(a) or nearest(a, b, keep))
    method = tiny()
    method(views_of(method), progress())
    assert {maps.shape[-1] for maps in seen} == {2, method.recipe.map_expander_width}
    out = method.student.eval()(torch.randn(2, 3, 64, 64))
    rows = method.student.maps_projector(out.dense.flatten(0, 1))
    torch.testing.assert_close(out.maps.flatten(0, 1), rows)


def test_counts_follow_the_order_within_a_pair(monkeypatch):
    seen = []
    monkeypatch.setattr(
        vicregl, "nearest", lambda a, b, keep: seen.append((a.shape[1], keep)) or nearest(a, b, keep)
    )
    maps = [torch.randn(3, n, 4) for n in (16, 16, 9)]
    spots = [torch.rand(3, n, 2) for n in (16, 16, 9)]
    local_terms(maps, spots, (5, 2), all_feature_matches=True)
    located = [entry for entry in seen if entry[1] is not None]
    # pairs (0, 1), (0, 2), (1, 0), (1, 2), each to and back
    assert located == [(16, 5), (16, 2), (16, 5), (9, 2), (16, 5), (16, 2), (16, 5), (9, 2)]


def test_statistics_are_over_the_batch_for_each_slot():
    slots = torch.arange(4.0).view(1, 4, 1).expand(5, 4, 3)  # the same in every image, other at every place
    terms = matched_terms(slots, slots)
    assert terms.variance.item() == pytest.approx(1 - 1e-4**0.5)
    assert terms.covariance == 0


def test_feature_and_place_count_twice_together():
    torch.manual_seed(0)
    maps = [torch.randn(5, 4, 3)] * 2  # every position is its own nearest, by feature and by place
    spots = [torch.rand(5, 4, 2)] * 2
    one = matched_terms(maps[0], maps[1])
    both = local_terms(maps, spots, (4, 4), all_feature_matches=True)
    torch.testing.assert_close(torch.stack(both), 2 * torch.stack(one))


def test_covariance_is_averaged_over_views_where_vicreg_sums():
    torch.manual_seed(0)
    x, y = torch.randn(2, 7, 5)
    ours, theirs = global_terms([x, y]), vicreg_terms(x, y, 7)
    torch.testing.assert_close(ours.covariance, theirs[2] / 2)
    torch.testing.assert_close(ours.variance, theirs[1])
    torch.testing.assert_close(ours.invariance, theirs[0])


def test_first_two_views_are_compared_with_every_other():
    views = [torch.full((3, 2), value) for value in (0.0, 1.0, 3.0)]
    pairs = [1.0, 9.0, 1.0, 4.0]  # 0-1, 0-2, 1-0, 1-2
    assert global_terms(views).invariance.item() == pytest.approx(sum(pairs) / 4)


def test_kept_matches_stay_in_order_of_position_and_both_sides_take_gradient():
    torch.manual_seed(0)
    maps = [torch.randn(3, 16, 4, requires_grad=True) for _ in range(2)]
    pairs = nearest(maps[0], maps[1], 5)
    assert (pairs.source.diff(dim=1) > 0).all()
    distances = torch.cdist(maps[0], maps[1]).min(-1).values
    assert distances.gather(1, pairs.source).max(1).values.le(distances.sort(1).values[:, 4]).all()
    matched_terms(take(maps[0], pairs.source), take(maps[1], pairs.candidate)).invariance.backward()
    assert all(m.grad.abs().sum() > 0 for m in maps)


def test_equal_distances_still_give_as_many_pairs():
    spots = torch.zeros(2, 9, 2)  # one crop twice: every distance is zero
    pairs = nearest(spots, spots, 4)
    assert pairs.source.shape == pairs.candidate.shape == (2, 4)
    assert (pairs.source.diff(dim=1) > 0).all()


def test_more_matches_than_positions_are_all_of_them():
    assert nearest(torch.rand(2, 9, 2), torch.rand(2, 49, 2), 20).source.shape == (2, 9)
    assert nearest(torch.rand(2, 9, 2), torch.rand(2, 49, 2), -1).source.shape == (2, 9)  # all, as released


@pytest.mark.parametrize("mirrored", [False, True])
def test_flip_is_ignored_in_places_unless_asked_for(mirrored):
    assert not VICRegLRecipe().flip_grid
    transform = tiny(flip_grid=mirrored).views()
    crops = tuple(dataclasses.replace(crop, flip=1.0) for crop in transform.crops)
    seen = dataclasses.replace(transform, crops=crops)(Image.new("RGB", (90, 80)))
    columns = seen.extra["places_0"][..., 1]
    assert (columns[:, 0] > columns[:, 1]).all() == mirrored


def test_places_are_vertical_first_and_in_the_middle_of_cells():
    places = places_of((10, 100, 20, 40), 2)
    assert places.tolist() == [[[15.0, 110.0], [15.0, 130.0]], [[25.0, 110.0], [25.0, 130.0]]]


def test_normalisation_has_the_released_deviation():
    assert VICRegL.std == (0.228, 0.224, 0.225)


def test_small_crops_alternate_as_the_large_ones_do():
    crops = tiny(local_crops=3, local_size=32).views().crops
    assert [(c.blur, c.solarise) for c in crops] == [
        (1.0, 0.0),
        (0.1, 0.2),
        (1.0, 0.0),
        (0.1, 0.2),
        (1.0, 0.0),
    ]


def test_official_grids_are_seven_and_three():
    for recipe in (VICRegLRecipe(local_crops=1), VICRegLRecipe.convnext()):
        with torch.device("meta"):
            grids = VICRegL(recipe).views().grids
        assert grids == (7, 7) + (3,) * recipe.local_crops


@pytest.mark.parametrize(("share", "missing"), [(1.0, "maps_projector"), (0.0, "projector")])
def test_loss_that_is_off_has_no_expander(share, missing):
    method = tiny(global_weight=share)
    assert getattr(method.student, missing) is None
    out = method(views_of(method), progress())
    assert list(out.logs) == ["global_loss" if share else "local_loss"]
    out.loss.backward()
    assert all(p.grad is not None for p in method.student.parameters() if p.requires_grad)
    torch.testing.assert_close(out.loss.detach(), *out.logs.values())


def test_share_beyond_one_is_refused():
    with pytest.raises(ValueError, match="0 to 1"):
        tiny(global_weight=1.5)


def test_convnext_gets_layer_norm_in_its_expanders_and_resnet_batch_norm():
    for method, norm in ((tiny_convnext(), nn.LayerNorm), (tiny(), nn.BatchNorm1d)):
        for layers in (method.student.projector, method.student.maps_projector):
            assert [type(m) for m in layers] == [nn.Linear, norm, nn.ReLU] * 2 + [nn.Linear]
            biases = [m.bias is not None for m in layers if isinstance(m, nn.Linear)]
            assert biases == [True, True, False]


def test_convnext_norms_every_position_before_pooling_and_has_no_layer_scale():
    backbone = tiny_convnext().student.backbone.eval()
    assert not any("gamma" in name for name, _ in backbone.named_parameters())
    with torch.no_grad():
        pooled, dense = backbones.features(backbone, torch.randn(2, 3, 64, 64))
        torch.testing.assert_close(dense.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(pooled, dense.mean(1))
    scaled = tiny_convnext(layer_scale=1e-6).student.backbone
    assert (scaled.stages[0].blocks[0].gamma == 1e-6).all()


def test_drop_path_grows_to_a_tenth_in_a_convnext_alone():
    rates = [m.drop_prob for m in tiny_convnext().modules() if type(m).__name__ == "DropPath"]
    np.testing.assert_allclose([0.0, *rates], np.linspace(0, 0.1, 5), rtol=1e-6)
    assert not any(type(m).__name__ == "DropPath" for m in tiny().modules())


def test_convnext_recipe_is_the_default_of_the_code():
    recipe = VICRegLRecipe.convnext()
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay) == ("adamw", 5e-4, 0.05)
    assert (recipe.global_scale, recipe.local_scale, recipe.local_crops) == ((0.4, 1.0), (0.08, 0.4), 6)
    method = tiny_convnext()
    decayed, plain = method.parameter_groups()
    assert (decayed.weight_decay, plain.weight_decay) == ("weight_decay", "")
    assert all(p.ndim == 1 for _, p in plain.parameters)
    assert isinstance(optim.build(method.recipe, [decayed, plain]), torch.optim.AdamW)


def test_convnext_trains_every_parameter():
    method = tiny_convnext()
    out = method(views_of(method), progress())
    out.loss.backward()
    assert out.dense.shape == (2 * BATCH, 4, 128)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)


def test_loss_is_alpha_global_and_the_rest_local():
    method = tiny(global_weight=0.9)
    out = method(views_of(method), progress())
    expected = 0.9 * out.logs["global_loss"] + 0.1 * out.logs["local_loss"]
    torch.testing.assert_close(out.loss.detach(), expected)


def test_steps_are_counted_from_images_and_the_rate_rests_after_them():
    recipe = dataclasses.replace(VICRegLRecipe.tiny(), warmup_epochs=1)
    lr = VICRegL(recipe).schedules(Plan(epochs=4, steps_per_epoch=2, batch_size=64, images=190))["lr"]
    warmup, total = 190 // 64, 4 * 190 // 64
    expected = [
        step / warmup
        if step < warmup
        else 0.001 + 0.999 * (1 + np.cos(np.pi * (step - warmup) / (total - warmup))) / 2
        for step in range(8)
    ]
    np.testing.assert_allclose(lr, recipe.lr / 4 * np.array(expected), rtol=1e-9)
    after = learning_rates(1.0, 0.001, 10, 2, 14)
    np.testing.assert_allclose(after[10:], 0.001)


def test_without_warmup_the_rate_starts_at_its_peak():
    assert learning_rates(2.0, 0.001, 10, 0, 10)[0] == 2.0
