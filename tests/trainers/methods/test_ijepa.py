"""I-JEPA against vectors made with facebookresearch/ijepa, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch

from trainers import backbones
from trainers.masks import MultiBlock
from trainers.method import Plan
from trainers.methods.ijepa import (
    IJEPA,
    IJEPARecipe,
    Predictor,
    gather_patches,
    make_targets,
    prediction_loss,
)

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}
OUTPUT = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def g(golden):
    return golden("ijepa")


def masks(g, prefix, kind, count):
    return [g[f"{prefix}_{kind}_{i}"] for i in range(count)]


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
    grid = round(g["num_patches"] ** 0.5)
    predictor = Predictor(width, grid, inner, 1, g["predictor/num_heads"], mlp_ratio=g["predictor/mlp_ratio"])
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
        depth=1,
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


def test_context_never_shows_a_target(collator):
    torch.manual_seed(0)
    for step in range(10):
        contexts, targets = collator.draw(4, step)
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
    )
    plan = Plan(g["sched/epochs"], g["sched/iters_per_epoch"], 64, images=1)
    schedules = IJEPA(recipe).schedules(plan)
    for ours, theirs in (("lr", "lr"), ("weight_decay", "wd"), ("teacher_momentum", "momentum")):
        np.testing.assert_allclose(schedules[ours], g[f"sched/{theirs}"].numpy(), atol=1e-12, rtol=0)
