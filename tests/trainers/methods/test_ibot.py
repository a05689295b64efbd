"""iBOT against vectors made with bytedance/ibot, at the tolerances of its fact sheet."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from trainers import backbones, optim
from trainers.centre import updated_centre
from trainers.masks import block_mask, mask_ratio
from trainers.method import Plan, Progress
from trainers.methods.ibot import IBOT, IBOTHead, IBOTRecipe, ibot_losses

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}
CENTRE = {"rtol": 0.0, "atol": 1e-6}
OUTPUT = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def g(golden):
    return golden("ibot")


def call(g, prefix, epoch, centre, patch_centre, *, local):
    """One official call: terms, gradients by input, and the centres after it."""
    views, inputs = g["n_global"], {}
    for name in ("student_cls", "student_patch", *(["student_local_cls"] if local else [])):
        inputs[name] = g[f"{prefix}/{name}"].clone().requires_grad_()
    cls = inputs["student_cls"]
    if local:
        cls = torch.cat([cls, inputs["student_local_cls"]])
    teacher_cls, teacher_patch = g[f"{prefix}/teacher_cls"], g[f"{prefix}/teacher_patch"]
    losses = ibot_losses(
        cls.unflatten(0, (-1, g["batch"])),
        inputs["student_patch"].unflatten(0, (views, -1)),
        teacher_cls.unflatten(0, (views, -1)),
        teacher_patch.unflatten(0, (views, -1)),
        torch.stack([g[f"{prefix}/mask_{i}"].flatten(1) for i in range(views)]),
        centre,
        patch_centre,
        student_temperature=g["student_temp"],
        teacher_temperature=float(g["teacher_temp_schedule"][epoch]),
        teacher_patch_temperature=float(g["teacher_patch_temp_schedule"][epoch]),
    )
    terms = (g["lambda1"] * losses.across_views, g["lambda2"] * losses.masked_patches)
    (terms[0] + terms[1]).backward()
    centre = updated_centre(centre, teacher_cls.mean(0, keepdim=True), g["center_momentum"])
    mean = teacher_patch.mean((0, 1)).view(1, 1, -1)
    return terms, inputs, centre, updated_centre(patch_centre, mean, g["center_momentum2"])


def compare(g, prefix, terms, inputs):
    torch.testing.assert_close(terms[0].detach(), g[f"{prefix}/loss_cls"], **LOSS)
    torch.testing.assert_close(terms[1].detach(), g[f"{prefix}/loss_patch"], **LOSS)
    torch.testing.assert_close((terms[0] + terms[1]).detach(), g[f"{prefix}/loss"], **LOSS)
    for name, value in inputs.items():
        torch.testing.assert_close(value.grad, g[f"{prefix}/grad_{name}"], **GRADIENT)


def test_losses_gradients_and_centres_equal_two_official_steps(g):
    centre, patch_centre = g["center_before"], g["center2_before"]
    for prefix in ("step1", "step2"):
        terms, inputs, centre, patch_centre = call(g, prefix, g["epoch"], centre, patch_centre, local=True)
        compare(g, prefix, terms, inputs)
        torch.testing.assert_close(centre, g[f"{prefix}/center_after"], **CENTRE)
        torch.testing.assert_close(patch_centre, g[f"{prefix}/center2_after"], **CENTRE)


def test_losses_without_local_crops_equal_official(g):
    centre, patch_centre = torch.zeros(1, g["out_dim"]), torch.zeros(1, 1, g["patch_out_dim"])
    terms, inputs, *_ = call(g, "nolocal", g["nolocal/epoch"], centre, patch_centre, local=False)
    compare(g, "nolocal", terms, inputs)


def test_masked_and_whole_forward_equal_official(g):
    spec = backbones.describe(
        "vit_mini_patch8",
        g["vit/images"].shape[-1],
        patch_size=g["vit/patch_size"],
        embed_dim=g["vit/param/cls_token"].shape[-1],
        depth=1,
        num_heads=g["vit/num_heads"],
        mlp_ratio=g["vit/mlp_ratio"],
    )
    model = backbones.build(spec).eval()
    prefix = "vit/param/"
    state = {k[len(prefix) :]: v for k, v in g.items() if k.startswith(prefix)}
    masked_embed = state.pop("masked_embed")
    model.load_state_dict(state)
    with torch.no_grad():
        embedded = backbones.vit_embed(model, g["vit/images"], g["vit/mask"].flatten(1), masked_embed)
        torch.testing.assert_close(embedded, g["vit/tokens_after_prepare_masked"][:, 1:], **OUTPUT)
        torch.testing.assert_close(backbones.vit_encode(model, embedded), g["vit/out_masked"], **OUTPUT)
        torch.testing.assert_close(
            backbones.vit_tokens(model, g["vit/images"]), g["vit/out_unmasked"], **OUTPUT
        )


@pytest.mark.parametrize("kind", ["separate", "shared"])
def test_head_equals_official(g, kind):
    prefix = f"head_{kind}/param/"
    state = {k[len(prefix) :]: v for k, v in g.items() if k.startswith(prefix)}
    hidden, width = state["mlp.0.weight"].shape
    head = IBOTHead(
        width,
        len(state["last_layer.weight_v"]),
        len(state["last_layer2.weight_v"]),
        shared=kind == "shared",
        hidden=hidden,
        bottleneck=len(state["mlp.4.weight"]),
        norm_last_layer=False,
    )
    assert set(head.state_dict()) == set(g[f"head_{kind}/state_keys"].split("\n"))
    assert {n for n, _ in head.named_parameters()} == set(g[f"head_{kind}/named_parameters"].split("\n"))
    head.load_state_dict(state)
    cls, patches = head.tokens(g[f"head_{kind}/in"])
    torch.testing.assert_close(cls.detach(), g[f"head_{kind}/out_cls"], **OUTPUT)
    torch.testing.assert_close(patches.detach(), g[f"head_{kind}/out_patch"], **OUTPUT)


def test_masks_equal_official_draw_for_draw(g):
    random.seed(g["blockmask/example_seed"])
    for name in ("example_0", "example_1", "example_local"):
        expected = g[f"blockmask/{name}"].numpy()
        ratio = mask_ratio((0.3,), (0.0,))
        np.testing.assert_array_equal(block_mask(*expected.shape, ratio), expected)


@pytest.mark.parametrize(
    ("name", "ratios", "spreads"),
    [("fixed_counts", (0.3,), (0.0,)), ("recipe_counts", (0.0, 0.3), (0.0, 0.2))],
)
def test_masked_counts_are_distributed_as_official(g, name, ratios, spreads):
    random.seed(0)
    ours = np.array([block_mask(14, 14, mask_ratio(ratios, spreads)).sum() for _ in range(600)])
    theirs = g[f"blockmask/{name}"].numpy()
    # two samples of 600: means within four standard errors
    error = np.hypot(ours.std(), theirs.std()) / np.sqrt(600)
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    assert ours.max() <= 0.5 * 196
    assert abs((ours == 0).mean() - (theirs == 0).mean()) < 0.1


def test_schedules_equal_official(g, distillation_schedules):
    distillation_schedules(g, IBOT)


def test_temperature_tables_equal_official(g):
    for kind in ("", "patch_"):
        table = optim.epoch_table(
            g[f"warmup_teacher_{kind}temp"],
            g[f"teacher_{kind}temp"],
            g["warmup_teacher_temp_epochs"],
            g["nepochs"],
            1,
        )
        expected = g[f"teacher_{kind}temp_schedule"].numpy()
        np.testing.assert_allclose(table, expected, atol=1e-12, rtol=0)


def test_first_epoch_leaves_both_prototype_layers_out_of_the_step():
    method = IBOT(dataclasses.replace(IBOTRecipe.tiny(), shared_head=False))
    for parameter in method.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    method.after_backward(Progress(Plan(10, 5, 64, 320), 4))
    assert method.student.head.last_layer.weight_v.grad is None
    assert method.student.head.last_layer2.weight_v.grad is None
    assert method.student.masked_embed.grad is not None


def test_shared_teacher_starts_from_the_students_patch_prototypes():
    method = IBOT(dataclasses.replace(IBOTRecipe.tiny(), shared_head=False, shared_head_teacher=True))
    assert torch.equal(method.teacher.head.last_layer.weight_v, method.student.head.last_layer2.weight_v)
