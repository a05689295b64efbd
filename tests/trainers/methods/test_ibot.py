"""iBOT against vectors made with bytedance/ibot, at the tolerances of its fact sheet."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim
from dse_monitor.trainers.blocks.centre import updated_centre
from dse_monitor.trainers.blocks.masks import block_mask, mask_ratio, random_mask
from dse_monitor.trainers.engine.data import seeded
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods import ibot
from dse_monitor.trainers.methods.ibot import IBOT, IBOTHead, IBOTRecipe, ibot_losses, patch_loss

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
    masks = torch.stack([g[f"{prefix}/mask_{i}"].flatten(1) for i in range(views)]).bool()
    losses = ibot_losses(
        cls.unflatten(0, (-1, g["batch"])),
        inputs["student_patch"].unflatten(0, (views, -1))[masks],
        teacher_cls.unflatten(0, (views, -1)),
        teacher_patch.unflatten(0, (views, -1))[masks],
        masks,
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
            delay=g["mim_start_epoch"] if kind else 0,
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


VALUES = {"teacher_temperature": 0.04, "teacher_patch_temperature": 0.05, "teacher_momentum": 0.75}
STEP = Progress(Plan(10, 5, 4, 20), 0, VALUES)


@pytest.fixture
def method():
    torch.manual_seed(0)
    return IBOT(IBOTRecipe.tiny())


def masked_crops(*sizes, batch=3):
    """Image 0 shows everything in both crops, the last hides everything in the second."""
    masks = torch.rand(batch, 2, 8, 8) < 0.3
    masks[0] = False
    masks[-1, 1] = True
    return Views([torch.randn(batch, 3, size, size) for size in sizes], {"masks": masks})


def test_patches_learn_from_the_same_view_and_cls_tokens_from_others():
    """One view's targets are made certain: only the pairs that may use them notice."""
    zeros = dict(
        student_cls=torch.zeros(3, 2, 4),
        student_patches=torch.zeros(20, 4),
        teacher_cls=torch.zeros(2, 2, 4),
        teacher_patches=torch.zeros(20, 4),
        masks=torch.ones(2, 2, 5, dtype=torch.bool),
        centre=torch.zeros(1, 4),
        patch_centre=torch.zeros(1, 1, 4),
        student_temperature=0.1,
        teacher_temperature=0.04,
        teacher_patch_temperature=0.05,
    )

    def gradients(name):
        x = zeros[name].clone().requires_grad_()
        teacher = {k: v.clone() for k, v in zeros.items() if k in ("teacher_cls", "teacher_patches")}
        for value in (v.view(2, -1, 4) for v in teacher.values()):
            value[0, :, 0] = 9
            value[1, :, 1] = 9
        losses = ibot_losses(**{**zeros, **teacher, name: x})
        (losses.across_views + losses.masked_patches).backward()
        views = 3 if name == "student_cls" else 2
        return -x.grad.view(views, -1, 4).sum(1)  # [views, K]: what each view is pulled to

    cls, patches = gradients("student_cls"), gradients("student_patches")
    assert [row.argmax().item() for row in cls[:2]] == [1, 0]  # each global crop to the other's target
    assert cls[2, 0] == pytest.approx(cls[2, 1].item())  # the local crop to both
    assert [row.argmax().item() for row in patches] == [0, 1]


def test_whole_images_count_nothing_but_stay_in_the_mean():
    logits, targets = torch.zeros(1, 4, 5, 3), torch.softmax(torch.randn(1, 4, 5, 3), -1)
    masks = torch.zeros(1, 4, 5, dtype=torch.bool)
    assert patch_loss(logits[masks], targets[masks], masks, 0.1) == 0
    masks[0, 0, 2] = masks[0, 1, :4] = True  # one patch, or four: each image counts once
    assert patch_loss(logits[masks], targets[masks], masks, 0.1).item() == pytest.approx(
        np.log(3) * 2 / 4, rel=1e-6
    )


def test_patch_centre_moves_by_all_patches_hidden_or_not(method):
    views = masked_crops(64, 64, 32)
    with torch.no_grad():
        cls, patches, _ = method.teacher(torch.cat(views.images[:2]))
        method(views, STEP)
    assert not method.patch_centre.value.any()
    method.after_step(STEP)
    torch.testing.assert_close(method.centre.value, 0.1 * cls.mean(0, keepdim=True))
    torch.testing.assert_close(method.patch_centre.value, 0.1 * patches.mean((0, 1), keepdim=True))


def test_teacher_sees_whole_crops_and_the_student_masked_ones(method, monkeypatch):
    """The hidden patches' pixels reach the targets but not the predictions."""
    views = masked_crops(64, 64)
    hidden = views.extra["masks"][-1, 1].all()
    assert hidden
    other = Views([views.images[0], views.images[1].clone()], views.extra)
    other.images[1][-1] += 1
    students, teachers = [], []

    def watched(student_cls, student_patches, teacher_cls, teacher_patches, *rest, **numbers):
        students.append(student_patches[-1].detach())
        teachers.append(teacher_patches[-1])
        return ibot_losses(student_cls, student_patches, teacher_cls, teacher_patches, *rest, **numbers)

    monkeypatch.setattr(ibot, "ibot_losses", watched)
    for seen in (views, other):
        method(seen, STEP)
    assert torch.equal(*students)
    assert not torch.equal(*teachers)


def test_local_crops_are_whole_and_give_cls_tokens_only(method):
    method.student.masked_embed.data.fill_(9)
    views = masked_crops(64, 64, 32, 32)
    seen = []
    method.student.head.last_layer.register_forward_hook(lambda module, args, output: seen.append(output))
    method(views, STEP)
    with torch.no_grad():
        expected = method.teacher.cls_logits(torch.cat(views.images[2:]))  # has no masked embedding
    hidden = int(views.extra["masks"].sum())
    assert [tuple(x.shape[:-1]) for x in seen[:3]] == [(6,), (hidden,), (6,)]
    torch.testing.assert_close(seen[2].detach(), expected, rtol=1e-4, atol=1e-5)


def test_masked_embedding_starts_at_zero_is_decayed_and_the_students_alone(method):
    assert not method.student.masked_embed.any()
    decayed, _ = method.parameter_groups()
    assert "masked_embed" in {name for name, _ in decayed.parameters}
    assert "masked_embed" not in dict(method.teacher.named_parameters())


def test_head_shares_one_pass_with_all_tokens_and_takes_cls_tokens_alone():
    torch.manual_seed(0)
    head = IBOTHead(6, 5, 4, shared=False, hidden=8, bottleneck=3, norm_last_layer=False)
    tokens = torch.randn(2, 1 + 7, 6)
    cls, patches = head.tokens(tokens)
    assert (cls.shape, patches.shape) == ((2, 5), (2, 7, 4))
    torch.testing.assert_close(head(tokens[:, 0]), cls)
    masks = torch.rand(2, 7) < 0.5
    some_cls, some = head.masked_tokens(tokens, masks.flatten().nonzero().squeeze(1))
    torch.testing.assert_close(some_cls, cls)
    torch.testing.assert_close(some, patches[masks])
    *pair, mean = head.targets(head.bottleneck(tokens), masks.flatten().nonzero().squeeze(1))
    torch.testing.assert_close(pair, [cls, patches[masks]])
    torch.testing.assert_close(mean, patches.mean((0, 1)))


@pytest.mark.parametrize(("student", "teacher"), [(True, True), (True, False), (False, True), (False, False)])
def test_teacher_follows_what_both_networks_name(student, teacher):
    recipe = dataclasses.replace(IBOTRecipe.tiny(), shared_head=student, shared_head_teacher=teacher)
    method = IBOT(recipe)
    follower = method.teacher.head
    before = {name: p.detach().clone() for name, p in follower.named_parameters()}
    for parameter in method.student.parameters():
        parameter.data.add_(1)
    method.after_step(STEP)
    for name, parameter in follower.named_parameters():
        online = dict(method.student.head.named_parameters()).get(name)
        expected = before[name] if online is None else 0.75 * before[name] + 0.25 * online.detach()
        torch.testing.assert_close(parameter.detach(), expected)


def test_only_global_crops_are_masked_each_with_a_share_of_its_own(method):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    view = method.views()
    shares = []
    for key in range(60):
        with seeded(key):
            seen = view(image)
        assert seen.extra["masks"].shape == (2, 8, 8)
        assert len(seen.images) == 6
        shares.append(seen.extra["masks"].float().mean((1, 2)))
    shares = torch.stack(shares)
    assert 0.3 < (shares == 0).float().mean() < 0.7  # one crop in two is whole
    assert shares.max() <= 0.5
    assert (shares[:, 0] != shares[:, 1]).any()


@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (6, 6), (5, 9), (3, 3), (2, 2), (1, 4)])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_masks_fit_any_grid_and_never_hide_more_than_their_share(rows, columns, ratio):
    random.seed(0)
    np.random.seed(0)
    for _ in range(20):
        block, single = block_mask(rows, columns, ratio), random_mask(rows, columns, ratio)
        assert block.shape == single.shape == (rows, columns)
        assert block.sum() <= ratio * rows * columns
        assert single.sum() == int(ratio * rows * columns)


def test_random_masks_hide_single_patches_anywhere(method):
    np.random.seed(0)
    seen = np.mean([random_mask(4, 4, 0.3) for _ in range(400)], axis=0)
    np.testing.assert_allclose(seen, 4 / 16, atol=0.1)
    recipe = dataclasses.replace(
        IBOTRecipe.tiny(), mask_shape="random", mask_ratios=(0.3,), mask_spreads=(0.0,)
    )
    masks = IBOT(recipe).views()(Image.new("RGB", (80, 80))).extra["masks"]
    assert masks.sum((1, 2)).tolist() == [19, 19]  # of 64, rounded down


def test_masking_can_begin_later_and_its_temperature_waits():
    recipe = dataclasses.replace(IBOTRecipe.tiny(), mask_from_epoch=2, teacher_temperature_epochs=3)
    method, views = IBOT(recipe), masked_crops(64, 64)
    for epoch in (1, 2):
        out = method(views, Progress(Plan(8, 5, 3, 15), 5 * epoch, VALUES))
        assert bool(out.logs["patch_loss"] > 0) is (epoch == 2)
    table = method.schedules(Plan(8, 5, 3, 15))["teacher_patch_temperature"][::5]
    np.testing.assert_allclose(table, [0.04, 0.04, 0.04, 0.055, 0.07, 0.07, 0.07, 0.07])


def test_shared_head_of_two_widths_is_refused():
    with pytest.raises(ValueError, match="shared head needs"):
        IBOT(dataclasses.replace(IBOTRecipe.tiny(), patch_prototypes=7))


@pytest.mark.parametrize(("ratios", "spreads"), [((0.3,), (0.0, 0.2)), ((0.1, 0.3), (0.2, 0.2))])
def test_spreads_that_do_not_fit_the_ratios_are_refused(ratios, spreads):
    recipe = dataclasses.replace(IBOTRecipe.tiny(), mask_ratios=ratios, mask_spreads=spreads)
    with pytest.raises(ValueError, match="do not fit mask_ratios"):
        IBOT(recipe)


def test_one_spread_holds_for_every_ratio():
    drawn = {round(mask_ratio((0.2, 0.6), (0.1,)), 1) for _ in range(300)}
    assert drawn == {0.1, 0.2, 0.3, 0.5, 0.6, 0.7}
    IBOT(dataclasses.replace(IBOTRecipe.tiny(), mask_ratios=(0.2, 0.6), mask_spreads=(0.1,)))
