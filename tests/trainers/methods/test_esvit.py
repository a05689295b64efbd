"""EsViT against vectors made with microsoft/esvit, at the tolerances of its fact sheet."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks.centre import updated_centre
from dse_monitor.trainers.blocks.objectives import centred_softmax, mean_over_distinct
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.esvit import EsViT, EsViTRecipe, match_regions, region_pairs, view_pairs

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
    batch_mean = g[f"{case}/teacher_out"].mean(0, keepdim=True)
    centre = updated_centre(g[f"{case}/center_before"], batch_mean, g["center_momentum"])
    torch.testing.assert_close(centre, g[f"{case}/center_after"], **CENTRE)
    torch.testing.assert_close(loss.detach(), g[f"{case}/loss"], **LOSS)
    torch.testing.assert_close(student.grad, g[f"{case}/grad_student"], **GRADIENT)


def official_swin(g):
    """timm's network with the weights of EsViT's in golden vectors."""
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
    return model


def compare_crops(model, g, kind):
    with torch.no_grad():
        features = backbones.features(model, g[f"swin/images_{kind}"])
    torch.testing.assert_close(features.dense, g[f"swin/{kind}_regions"], **SWIN)
    torch.testing.assert_close(features.pooled, g[f"swin/{kind}_pooled"], **SWIN)


def test_swin_equals_official_on_both_crop_sizes(g):
    model = official_swin(g)
    for kind in ("global", "local"):
        compare_crops(model, g, kind)


def test_grids_that_windows_do_not_divide_are_filled_up_before_they_are_shifted(golden):
    """As in the local crops of the recipe, 24 patches a side in windows of 7; timm shifts first."""
    vectors = golden("esvit_windows")
    model = official_swin(vectors)
    compare_crops(model, vectors, "local")
    compare_crops(copy.deepcopy(model), vectors, "local")
    for block in (block for stage in model.layers for block in stage.blocks):
        del block._attn  # timm's own again
    with pytest.raises(AssertionError):
        compare_crops(model, vectors, "local")


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


def test_mixing_an_odd_number_of_images_is_refused():
    method = EsViT(dataclasses.replace(EsViTRecipe.tiny(), regions=False, mixed_views=2))
    with pytest.raises(ValueError, match="even number of images in a micro-batch, got 3"):
        method._mixed([torch.randn(3, 3, 64, 64)] * 2)


def test_resnets_start_as_torchvisions_and_without_stochastic_depth():
    method = EsViT(dataclasses.replace(EsViTRecipe.tiny(), backbone="resnet50", drop_path=0.1))
    weight = method.student.backbone.layer1[0].bn3.weight
    assert torch.equal(weight, torch.ones_like(weight))
    assert not any(isinstance(module, DropPath) for module in method.modules())


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


VALUES = {"teacher_temperature": 0.04, "teacher_momentum": 0.75}
STEP = Progress(Plan(10, 5, 4, 20), 0, VALUES)


@pytest.fixture
def method():
    torch.manual_seed(0)
    return EsViT(EsViTRecipe.tiny())


def crops(*sizes, batch=2):
    return Views([torch.randn(batch, 3, size, size) for size in sizes])


@pytest.mark.parametrize("sizes", [(64, 64), (64, 64, 32), (64, 64, 32, 32, 32)])
def test_region_loss_works_with_any_number_of_local_crops(method, sizes):
    """Without local crops too, where the released code fails."""
    out = method(crops(*sizes), STEP)
    out.loss.backward()
    assert out.loss.isfinite()
    assert method.student.head_dense.mlp[0].weight.grad.any()


def test_loss_is_half_views_half_regions_each_a_mean_over_pairs(method):
    out = method(crops(64, 64, 32), STEP)
    torch.testing.assert_close(out.loss.detach(), (out.logs["view_loss"] + out.logs["region_loss"]) / 2)
    unsure = [torch.zeros(2, size, 6) for size in (4, 4, 1)]
    targets, features = torch.softmax(torch.randn(2, 2, 4, 6), -1), torch.randn(2, 2, 4, 3)
    pairs = region_pairs(unsure, [torch.randn(2, x.shape[1], 3) for x in unsure], targets, features, 0.1)
    assert mean_over_distinct(pairs).item() == pytest.approx(np.log(6), rel=1e-5)


def test_matches_are_by_features_and_targets_by_logits():
    """A student region meets the target of the teacher region that its features match, not its logits."""
    features = torch.eye(2)[None]
    targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])[None]  # of teacher regions 0 and 1
    logits = torch.tensor([[[0.0, 50.0], [50.0, 0.0]]])
    swapped = features.flip(1)  # student region 0 looks like teacher region 1, whose target its logits give
    ((_, pair),) = region_pairs([logits] * 2, [swapped] * 2, targets, features[None], 1.0)
    assert pair.item() == pytest.approx(0, abs=1e-6)
    ((_, pair),) = region_pairs([logits] * 2, [features] * 2, targets, features[None], 1.0)
    assert pair.item() == pytest.approx(50)


def test_two_centres_move_after_the_step_over_all_rows_of_both_global_views(method):
    views = crops(64, 64, 32)
    with torch.no_grad():
        logits, regions, _ = method.teacher(views.images[:2])
        method(views, STEP)
    assert not method.centre.value.any()
    assert not method.region_centre.value.any()
    method.after_step(STEP)
    torch.testing.assert_close(method.centre.value, 0.1 * logits.mean(0, keepdim=True))
    rows = torch.cat([x.flatten(0, 1) for x in regions])
    torch.testing.assert_close(method.region_centre.value, 0.1 * rows.mean(0, keepdim=True))


def test_one_temperature_serves_both_levels(method):
    schedules = method.schedules(Plan(10, 5, 64, 320))
    assert [name for name in schedules if "temperature" in name] == ["teacher_temperature"]


def test_first_epoch_leaves_both_heads_prototypes_out_of_the_step(method):
    for parameter in method.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    method.after_backward(STEP)
    left_out = {name for name, p in method.student.named_parameters() if p.grad is None}
    assert left_out == {
        f"{head}.last_layer.{kind}" for head in ("head", "head_dense") for kind in ("weight_g", "weight_v")
    }


def test_swin_has_the_authors_epsilon_and_only_the_student_drops_paths():
    method = EsViT(dataclasses.replace(EsViTRecipe.tiny(), drop_path=0.1))
    assert {m.eps for m in method.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert any(isinstance(m, DropPath) for m in method.student.modules())
    assert not any(isinstance(m, DropPath) for m in method.teacher.modules())


def test_dense_tokens_are_the_students_regions_of_the_global_crops(method):
    views = crops(64, 64, 32)
    out = method(views, STEP)
    _, _, tokens = method.student(views.images)
    torch.testing.assert_close(out.dense, torch.cat(tokens[:2]))
    assert out.dense.requires_grad
