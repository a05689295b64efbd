"""I-JEPA against vectors made with facebookresearch/ijepa, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim
from dse_monitor.trainers.blocks.masks import MultiBlock
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.ijepa import (
    IJEPA,
    IJEPARecipe,
    Predictor,
    gather_patches,
    make_targets,
    prediction_loss,
    repeat_blocks,
)

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}
OUTPUT = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def g(golden):
    return golden("ijepa")


def masks(g, prefix, kind, count):
    return [g[f"{prefix}_{kind}_{i}"] for i in range(count)]


def blocks(g, prefix):
    """How many blocks the vectors have under a prefix."""
    return sum(key.startswith(prefix) and key.endswith(".norm1.weight") for key in g)


def test_targets_loss_and_gradient_equal_official(g):
    targets = make_targets(g["loss/target_encoder_out"], masks(g, "loss/mask", "pred", g["npred"]), g["nenc"])
    torch.testing.assert_close(targets, g["loss/targets"], **OUTPUT)
    predictions = g["loss/pred"].clone().requires_grad_()
    loss = prediction_loss(predictions, targets)
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["loss/value"], **LOSS)
    torch.testing.assert_close(predictions.grad, g["loss/grad_pred"], **GRADIENT)


def test_predictor_and_its_gradients_equal_official(g):
    inner, width = g["predictor/param/predictor_embed.weight"].shape
    grid, heads = round(g["num_patches"] ** 0.5), g["predictor/num_heads"]
    depth = blocks(g, "predictor/param/predictor_blocks.")
    predictor = Predictor(width, grid, inner, depth, heads, mlp_ratio=g["predictor/mlp_ratio"])
    prefix = "predictor/param/"
    state = {k[len(prefix) :].removeprefix("predictor_"): v for k, v in g.items() if k.startswith(prefix)}
    predictor.load_state_dict(state)
    x = g["predictor/in"].clone().requires_grad_()
    contexts, targets = masks(g, "loss/mask", "enc", g["nenc"]), masks(g, "loss/mask", "pred", g["npred"])
    out = predictor(x, contexts, targets)
    torch.testing.assert_close(out.detach(), g["predictor/out"], **OUTPUT)
    (out * g["predictor/cotangent"]).sum().backward()
    torch.testing.assert_close(x.grad, g["predictor/grad_in"], **GRADIENT)
    torch.testing.assert_close(predictor.mask_token.grad, g["predictor/grad/mask_token"], **GRADIENT)


def test_encoder_equals_official_masked_and_whole(g):
    width = g["encoder/param/norm.weight"].numel()
    spec = backbones.describe(
        "vit_mini_patch8",
        g["encoder/images"].shape[-1],
        patch_size=g["encoder/patch_size"],
        embed_dim=width,
        depth=blocks(g, "encoder/param/blocks."),
        num_heads=g["encoder/num_heads"],
        mlp_ratio=g["encoder/mlp_ratio"],
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )
    model = backbones.build(spec).eval()
    prefix = "encoder/param/"
    model.load_state_dict({k[len(prefix) :]: v for k, v in g.items() if k.startswith(prefix)})
    with torch.no_grad():
        embedded = gather_patches(
            backbones.vit_embed(model, g["encoder/images"]), masks(g, "loss/mask", "enc", g["nenc"])
        )
        torch.testing.assert_close(backbones.vit_encode(model, embedded), g["encoder/out_masked"], **OUTPUT)
        torch.testing.assert_close(
            backbones.vit_tokens(model, g["encoder/images"]), g["encoder/out_full"], **OUTPUT
        )


def test_positions_equal_official(g):
    table = backbones.sincos_positions(g["pos/dim"], g["pos/grid"])[0]
    torch.testing.assert_close(table, g["pos/sincos"].to(table.dtype), rtol=0, atol=1e-6)


@pytest.fixture
def collator(g):
    return MultiBlock(
        grid=g["mask/input_size"] // g["mask/patch_size"],
        targets=g["mask/npred"],
        contexts=g["mask/nenc"],
        target_scale=tuple(g["mask/pred_mask_scale"].tolist()),
        target_aspect=tuple(g["mask/aspect_ratio"].tolist()),
        context_scale=tuple(g["mask/enc_mask_scale"].tolist()),
        min_keep=g["mask/min_keep"],
        allow_overlap=bool(g["mask/allow_overlap"]),
    )


@pytest.fixture
def official_blocks() -> MultiBlock:
    """The released configuration for 224 pixels in patches of 16."""
    return MultiBlock(grid=14)


def test_block_sizes_equal_official_at_every_step(g, collator):
    for step, expected in enumerate(g["mask/block_sizes_by_step"].tolist()):
        target, context = collator.sizes(step)
        assert [*target, *context] == expected


@pytest.mark.parametrize("example", [0, 1])
def test_masks_equal_official_draw_for_draw(g, collator, example):
    torch.manual_seed(g[f"mask/example{example}_torch_seed"])
    contexts, targets = collator.draw(g["mask/collate_batch"], example)
    for i, mask in enumerate(contexts):
        assert torch.equal(mask, g[f"mask/example{example}_enc_{i}"])
    for i, mask in enumerate(targets):
        assert torch.equal(mask, g[f"mask/example{example}_pred_{i}"])


def test_context_never_shows_a_target(official_blocks):
    torch.manual_seed(0)
    for step in range(10):
        contexts, targets = official_blocks.draw(4, step)
        for image in range(4):
            hidden = {i for mask in targets for i in mask[image].tolist()}
            assert not hidden & set(contexts[0][image].tolist())


def test_grid_too_small_for_min_keep_is_refused():
    with pytest.raises(ValueError, match="lower min_keep"):
        MultiBlock(grid=6).draw(1, 0)


def test_schedules_equal_official(g):
    recipe = dataclasses.replace(
        IJEPARecipe.tiny(),
        start_lr=g["sched/start_lr"],
        lr=g["sched/ref_lr"],
        final_lr=g["sched/final_lr"],
        warmup_epochs=g["sched/warmup_epochs"],
        schedule_stretch=g["sched/ipe_scale"],
        weight_decay=g["sched/wd_start"],
        final_weight_decay=g["sched/wd_end"],
        teacher_momentum=g["sched/ema_start"],
        final_teacher_momentum=g["sched/ema_end"],
    )
    plan = Plan(g["sched/epochs"], g["sched/iters_per_epoch"], 64, images=1)
    schedules = IJEPA(recipe).schedules(plan)
    for ours, theirs in (("lr", "lr"), ("weight_decay", "wd"), ("teacher_momentum", "momentum")):
        np.testing.assert_allclose(schedules[ours], g[f"sched/{theirs}"].numpy(), atol=1e-12, rtol=0)


def test_sizes_of_the_masks_fit_the_official_batches(g, collator):
    torch.manual_seed(0)
    for step, contexts, targets, _, hidden, _ in g["mask/stats"].tolist():
        ours, theirs = collator.draw(g["mask/collate_batch"], step)
        assert (len(ours), len(theirs)) == (contexts, targets)
        assert theirs[0].shape[1] == hidden  # a target is never cut: its size follows from the step alone


# What is easily got wrong, one claim each ------------------------------------------------------------------


def step_of(method, images, step=0):
    """Views with masks, and where the run is."""
    views = method.collator()([Views([image]) for image in images], step)
    plan = Plan(10, 4, len(images), 4 * len(images))
    values = {name: float(values[step]) for name, values in method.schedules(plan).items()}
    return views, Progress(plan, step, values)


@pytest.fixture
def method():
    torch.manual_seed(0)
    return IJEPA(IJEPARecipe.tiny())


def test_targets_are_normalised_once_more_after_the_encoders_own_norm():
    tokens = torch.randn(2, 5, 8) * 3 + 1
    mask = torch.tensor([[0, 2], [1, 4]])
    targets = make_targets(tokens, [mask], 1)
    torch.testing.assert_close(targets.mean(-1), torch.zeros(2, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(targets.var(-1, unbiased=False), torch.ones(2, 2), atol=1e-4, rtol=0)


def test_no_gradient_reaches_the_targets():
    tokens = torch.randn(1, 4, 8, requires_grad=True)
    assert not make_targets(tokens, [torch.tensor([[0, 1]])], 1).requires_grad


def test_targets_are_ordered_by_target_then_context_then_image():
    tokens = torch.eye(6).expand(2, 6, 6).clone()
    tokens[1] *= -1  # the second image
    masks = [torch.full((2, 1), place) for place in (0, 3, 5)]
    targets = make_targets(tokens, masks, contexts=2)
    assert targets.shape == (3 * 2 * 2, 1, 6)
    peaks = targets[:, 0].abs().argmax(-1, keepdim=True)
    assert peaks.view(3, 2, 2).tolist() == [[[place] * 2] * 2 for place in (0, 3, 5)]
    signs = targets[:, 0].gather(1, peaks).sign()
    assert signs.view(3, 2, 2).tolist() == [[[1.0, -1.0]] * 2] * 3


def test_repeating_keeps_a_batch_together():
    assert repeat_blocks(torch.arange(6), blocks=3, times=2).tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5]


def test_predictions_are_ordered_as_the_targets():
    torch.manual_seed(0)
    predictor = Predictor(8, 4, 8, 1, 2)
    tokens = torch.randn(2 * 3, 5, 8)  # two contexts of three images
    contexts = [torch.stack([torch.randperm(16)[:5] for _ in range(3)]) for _ in range(2)]
    targets = [torch.stack([torch.randperm(16)[:4] for _ in range(3)]) for _ in range(3)]
    with torch.no_grad():
        together = predictor(tokens, contexts, targets).unflatten(0, (3, 2, 3))
        for t in range(3):
            for c in range(2):
                alone = predictor(tokens[3 * c : 3 * c + 3], contexts[c : c + 1], targets[t : t + 1])
                torch.testing.assert_close(together[t, c], alone)


def test_one_draw_gives_scale_and_aspect(official_blocks):
    seen = set()
    for step in range(40):
        share = torch.rand(1, generator=torch.Generator().manual_seed(step)).item()
        area, aspect = int(196 * (0.15 + 0.05 * share)), 0.75 + 0.75 * share
        (height, width), context = official_blocks.sizes(step)
        assert (height, width) == (round((area * aspect) ** 0.5), round((area / aspect) ** 0.5))
        assert context == (13, 13)
        seen.add((height, width))
    assert seen <= {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)}


def test_last_row_and_column_are_never_shown(official_blocks):
    torch.manual_seed(0)
    for step in range(20):
        (context,), _ = official_blocks.draw(6, step)
        assert (context // 14).max() < 13
        assert (context % 14).max() < 13


def test_block_never_takes_the_last_offset():
    torch.manual_seed(0)
    block = MultiBlock(grid=6, min_keep=3)
    corners = {block._place((2, 3), [])[0][0].item() for _ in range(400)}
    assert {corner // 6 for corner in corners} == set(range(4))  # 0 .. 6 - 2 - 1
    assert {corner % 6 for corner in corners} == set(range(3))


def test_context_may_show_targets_only_where_that_is_allowed():
    torch.manual_seed(0)
    recipe = dataclasses.replace(IJEPARecipe.tiny(), allow_overlap=True)
    (context,), targets = IJEPA(recipe).collator().draw(8, 0)
    assert context.shape[1] == 7 * 7
    assert any(set(context[i].tolist()) & set(targets[0][i].tolist()) for i in range(8))


def test_context_that_targets_cover_gives_the_last_target_up():
    torch.manual_seed(0)
    block = MultiBlock(grid=4, min_keep=3)
    covered, free = torch.zeros(2, 4, 4, dtype=torch.int32)
    free[:] = 1
    shown, _ = block._place((3, 3), [free, covered])
    assert len(shown) == 9


def test_masks_are_cut_to_the_shortest_from_the_end_in_raster_order(official_blocks):
    torch.manual_seed(0)
    contexts, targets = official_blocks.draw(6, 0)
    for mask in (*contexts, *targets):
        assert (mask.diff(dim=1) > 0).all()


def test_block_that_is_too_small_is_refused_for_contexts_too():
    with pytest.raises(ValueError, match="a context block of 2 x 2"):
        MultiBlock(grid=14, context_scale=(0.02, 0.02)).draw(1, 0)


def test_context_is_taken_after_positions_and_before_the_blocks(method):
    backbone = method.student.backbone.eval()
    images, mask = torch.randn(2, 3, 64, 64), torch.tensor([[0, 9, 63], [5, 6, 7]])
    with torch.no_grad():
        tokens, _ = method.student(images, [mask], [mask])
        embedded = backbone.patch_embed(images) + backbone.pos_embed
        chosen = torch.stack([embedded[i, mask[i]] for i in range(2)])
        torch.testing.assert_close(tokens, backbone.norm(backbone.blocks(chosen)))
        whole = backbones.vit_tokens(backbone, images)
    assert not torch.allclose(tokens, torch.stack([whole[i, mask[i]] for i in range(2)]), atol=1e-2)


def test_all_positions_are_interpolated_and_none_is_taken_for_a_cls_slot(method):
    backbone = method.student.backbone
    table = backbones.interpolate_positions(backbone.pos_embed, 96, 96, 8, prefix=0)
    assert table.shape == (1, 12 * 12, 96)
    grid = backbone.pos_embed.reshape(1, 8, 8, 96).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(grid, scale_factor=12.1 / 8, mode="bicubic")
    torch.testing.assert_close(table, scaled.permute(0, 2, 3, 1).flatten(1, 2))
    with torch.no_grad():
        assert backbones.vit_tokens(backbone, torch.randn(1, 3, 96, 96)).shape == (1, 144, 96)


def test_positions_put_the_column_before_the_row():
    table = backbones.sincos_positions(16, 4)[0].unflatten(0, (4, 4))
    assert (table[:, 0, :8] == table[:1, 0, :8]).all()
    assert (table[0, :, 8:] == table[0, :1, 8:]).all()


def test_momentum_follows_a_line_and_starts_exactly_where_it_should():
    plan = Plan(epochs=5, steps_per_epoch=4, batch_size=64, images=256)
    momentum = IJEPA(IJEPARecipe.tiny()).schedules(plan)["teacher_momentum"]
    assert momentum[0] == 0.98
    np.testing.assert_allclose(np.diff(momentum), 0.02 / 20, rtol=1e-9)


def test_rate_and_decay_count_from_one():
    plan = Plan(epochs=4, steps_per_epoch=5, batch_size=64, images=320)
    recipe = IJEPARecipe.tiny()
    schedules = IJEPA(recipe).schedules(plan)
    assert schedules["lr"][0] == pytest.approx(recipe.start_lr + (recipe.lr - recipe.start_lr) / 5)
    assert schedules["lr"][4] == recipe.lr
    assert schedules["lr"][-1] == pytest.approx(recipe.final_lr)
    assert schedules["weight_decay"][0] > recipe.weight_decay
    assert schedules["weight_decay"][-1] == pytest.approx(recipe.final_weight_decay)


@pytest.mark.parametrize("stretch", [1.25, 0.8])
def test_stretched_schedules_are_those_of_a_run_of_that_length(stretch):
    recipe = dataclasses.replace(IJEPARecipe.tiny(), schedule_stretch=stretch)
    plain = IJEPA(IJEPARecipe.tiny()).schedules(Plan(int(20 * stretch), 5, 64, images=320))
    ours = IJEPA(recipe).schedules(Plan(20, 5, 64, images=320))
    common = slice(0, min(100, int(100 * stretch)))
    for name in ("lr", "weight_decay", "teacher_momentum"):
        np.testing.assert_allclose(ours[name][common], plain[name][common], rtol=1e-12)
    assert ours["teacher_momentum"].max() <= 1


def test_decay_may_fall_and_warmup_may_be_absent():
    recipe = dataclasses.replace(
        IJEPARecipe.tiny(), weight_decay=0.4, final_weight_decay=0.04, warmup_epochs=0
    )
    schedules = IJEPA(recipe).schedules(Plan(4, 5, 64, images=320))
    assert (np.diff(schedules["weight_decay"]) < 0).all()
    assert schedules["weight_decay"][-1] == pytest.approx(0.04)
    assert schedules["lr"].max() == schedules["lr"][0] < recipe.lr


def test_learning_rate_does_not_grow_with_the_batch():
    lr = [IJEPA(IJEPARecipe.tiny()).schedules(Plan(2, 5, batch, 5 * batch))["lr"] for batch in (64, 2048)]
    assert np.array_equal(*lr)


def test_matrices_start_alike_at_every_depth_and_the_patch_projection_without_bias(method):
    backbone = method.student.backbone
    assert not backbone.patch_embed.proj.bias.any()
    layers = [backbone.patch_embed.proj, *[block.mlp.fc2 for block in backbone.blocks]]
    layers += [block.attn.proj for block in method.student.predictor.blocks]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.08)


def test_target_encoder_sees_the_whole_image_and_the_file_holds_both_encoders(method):
    assert method.evaluated == "student.backbone."
    images = torch.randn(4, 3, 64, 64)
    views, progress = step_of(method, images)
    optimizer = optim.build(method.recipe, method.parameter_groups())
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    out = method(views, progress)
    assert out.dense.shape[1] == views.extra["context_0"].shape[1] < 64
    out.loss.backward()
    optimizer.step()
    method.after_step(progress)
    state = method.state_dict()
    names = [name.removeprefix("teacher.backbone.") for name in state if name.startswith("teacher.backbone.")]
    assert names == [name for name in method.student.backbone.state_dict()]
    features = [
        backbones.vit_tokens(m, images) for m in (method.student.backbone, method.teacher["backbone"])
    ]
    assert features[0].shape == features[1].shape == (4, 64, 96)
    assert not torch.allclose(*features)


def test_mask_token_is_decayed_and_positions_are_not_trained(method):
    decayed, plain = method.parameter_groups()
    assert "predictor.mask_token" in dict(decayed.parameters)
    assert not any("pos_embed" in name for group in (decayed, plain) for name, _ in group.parameters)
    assert all(p.ndim == 1 for _, p in plain.parameters)


def test_view_is_neither_flipped_nor_coloured_unless_asked():
    (crop,) = IJEPA(IJEPARecipe.tiny()).views().crops
    assert (crop.flip, crop.jitter_probability, crop.grey, crop.blur, crop.interpolation) == (
        0.0,
        0.0,
        0.0,
        0.0,
        "bilinear",
    )
    asked = dataclasses.replace(IJEPARecipe.tiny(), flip=0.5, colour=0.5, blur=0.5)
    (crop,) = IJEPA(asked).views().crops
    assert (crop.flip, crop.jitter, crop.grey, crop.blur) == (0.5, (0.4, 0.4, 0.4, 0.1), 0.2, 0.5)
