"""EsViT against vectors made with microsoft/esvit, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch

from trainers import backbones
from trainers.centre import updated_centre
from trainers.method import Plan, Progress, Views
from trainers.methods.esvit import EsViT, EsViTRecipe, match_regions, region_pairs, view_pairs
from trainers.objectives import centred_softmax, mean_over_distinct

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}
CENTRE = {"rtol": 0.0, "atol": 1e-6}
SWIN = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def g(golden):
    return golden("esvit")


def by_crop(g, rows):
    """Crop-major rows of regions -> one [B, N, .] per crop."""
    batch, sizes = g["batch"], [g["npatch_global"]] * 2 + [g["npatch_local"]] * g["n_local"]
    parts = rows.split([batch * size for size in sizes])
    return [part.unflatten(0, (batch, -1)) for part in parts]


def test_two_consecutive_steps_equal_official(g):
    centre, region_centre = g["center_before"], g["center_grid_before"]
    tau = float(g["teacher_temp_schedule"][g["epoch"]])
    for prefix in ("step1", "step2"):
        step = {k.split("/", 1)[1]: v for k, v in g.items() if k.startswith(prefix)}
        cls = step["s_cls"].clone().requires_grad_()
        region = step["s_region"].clone().requires_grad_()
        features = step["s_fea"].clone().requires_grad_()
        targets = centred_softmax(step["t_cls"], centre, tau).unflatten(0, (2, -1))
        regions = step["t_region"].unflatten(0, (2, g["batch"], -1))
        view = view_pairs(cls.unflatten(0, (g["ncrops"], -1)), targets, g["student_temp"])
        dense = region_pairs(
            by_crop(g, region),
            by_crop(g, features),
            centred_softmax(regions, region_centre, tau),
            step["t_fea"].unflatten(0, (2, g["batch"], -1)),
            g["student_temp"],
        )
        loss = (mean_over_distinct(view) + mean_over_distinct(dense)) / 2
        loss.backward()
        torch.testing.assert_close(loss.detach(), step["loss"], **LOSS)
        torch.testing.assert_close(cls.grad, step["grad_s_cls"], **GRADIENT)
        torch.testing.assert_close(region.grad, step["grad_s_region"], **GRADIENT)
        assert (features.grad is not None) == g["s_fea_receives_gradient"]
        momentum = g["center_momentum"]
        centre = updated_centre(centre, step["t_cls"].mean(0, keepdim=True), momentum)
        region_centre = updated_centre(region_centre, step["t_region"].mean(0, keepdim=True), momentum)
        torch.testing.assert_close(centre, step["center_after"], **CENTRE)
        torch.testing.assert_close(region_centre, step["center_grid_after"], **CENTRE)


def test_matches_equal_official(g):
    students = by_crop(g, g["step1/s_fea"])
    teachers = g["step1/t_fea"].unflatten(0, (2, g["batch"], -1))
    for key, expected in g.items():
        if key.startswith("step1/match/"):
            t, s = key.removeprefix("step1/match/t").split("_s")
            assert torch.equal(match_regions(students[int(s)], teachers[int(t)]), expected.long())


@pytest.mark.parametrize("case", ["view", "viewmix"])
def test_view_loss_equals_official_with_and_without_mixing(g, case):
    student = g[f"{case}/student_out"].clone().requires_grad_()
    tau = float(g["teacher_temp_schedule"][g["epoch"]])
    targets = centred_softmax(g[f"{case}/teacher_out"], g[f"{case}/center_before"], tau)
    mixes = g.get(f"{case}/targets")
    pairs = view_pairs(
        student.unflatten(0, (g["ncrops"], -1)), targets.unflatten(0, (2, -1)), g["student_temp"], mixes
    )
    loss = mean_over_distinct(pairs)
    loss.backward()
    torch.testing.assert_close(loss.detach(), g[f"{case}/loss"], **LOSS)
    torch.testing.assert_close(student.grad, g[f"{case}/grad_student"], **GRADIENT)


def test_swin_equals_official_on_both_crop_sizes(g):
    spec = backbones.describe(
        "swin_mini_patch4",
        g["swin/img_size"],
        ("swin",),
        norm_eps=g["swin/norm_eps"],
        patch_size=g["swin/patch_size"],
        embed_dim=g["swin/embed_dim"],
        depths=g["swin/depths"].tolist(),
        num_heads=g["swin/num_heads"].tolist(),
        window_size=g["swin/window"],
        mlp_ratio=g["swin/mlp_ratio"],
    )
    model = backbones.build(spec).eval()
    prefix, state = "swin/param/", {}
    for key, value in g.items():
        if key.startswith(prefix) and "relative_position_index" not in key:
            name = key[len(prefix) :]
            if ".downsample." in name:  # timm merges patches at the start of the next stage
                stage = int(name.split(".")[1])
                name = name.replace(f"layers.{stage}.", f"layers.{stage + 1}.")
            state[name] = value
    model.load_state_dict(state)
    with torch.no_grad():
        for kind in ("global", "local"):
            features = backbones.features(model, g[f"swin/images_{kind}"])
            torch.testing.assert_close(features.dense, g[f"swin/{kind}_regions"], **SWIN)
            torch.testing.assert_close(features.pooled, g[f"swin/{kind}_pooled"], **SWIN)


def test_schedules_equal_official(g, distillation_schedules):
    distillation_schedules(g, EsViT)


def test_position_bias_tables_are_decayed():
    decayed, _ = EsViT(EsViTRecipe.tiny()).parameter_groups()
    assert any("relative_position_bias_table" in name for name, _ in decayed.parameters)


def test_plain_transformer_is_refused():
    with pytest.raises(backbones.UnfitBackbone, match="swin or conv"):
        EsViT(dataclasses.replace(EsViTRecipe.tiny(), backbone="vit_mini_patch8"))


def test_regions_and_mixing_exclude_each_other():
    with pytest.raises(ValueError, match="regions=False"):
        EsViT(dataclasses.replace(EsViTRecipe.tiny(), mixed_views=2))


def test_mixed_views_train_and_leave_the_teacher_views_whole():
    torch.manual_seed(0)
    np.random.seed(0)
    recipe = dataclasses.replace(EsViTRecipe.tiny(), regions=False, mixed_views=3, local_crops=2)
    method = EsViT(recipe)
    images = [torch.randn(4, 3, size, size) for size in (64, 64, 32, 32)]
    mixed, mixes = method._mixed(images)
    torch.testing.assert_close(mixes.sum(-1), torch.ones(4, 4))
    assert torch.equal(mixed[3], images[3])
    assert torch.equal(mixes[3], torch.eye(4))
    loss = method(Views(images), Progress(Plan(1, 1, 4, 4), 0, {"teacher_temperature": 0.04})).loss
    loss.backward()
    assert loss.isfinite()
