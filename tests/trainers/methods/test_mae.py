"""MAE against vectors made with facebookresearch/mae, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch

from trainers import backbones
from trainers.method import Plan
from trainers.methods.mae import (
    MAE,
    Autoencoder,
    Decoder,
    MAERecipe,
    normalise_patches,
    patchify,
    random_masking,
    reconstruction_loss,
)

LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def g(golden):
    return golden("mae")


def official(name: str) -> str:
    """Our name of a parameter -> theirs."""
    if name.startswith("backbone."):
        return name.removeprefix("backbone.")
    name = name.removeprefix("decoder.")
    return name if name == "mask_token" else f"decoder_{name}"


def test_masking_equals_official(g):
    masking = random_masking(g["masking/noise"], g["mask_ratio"])
    assert torch.equal(masking.mask, g["masking/mask"])
    assert torch.equal(masking.restore, g["masking/ids_restore"])
    x = g["masking/x"]
    kept = x.gather(1, masking.kept[..., None].expand(-1, -1, x.shape[-1]))
    assert torch.equal(kept, g["masking/x_kept"])


def test_patches_equal_official(g):
    assert torch.equal(patchify(g["patch/images"], g["patch_size"]), g["patch/patches"])


@pytest.mark.parametrize("kind", ["normpix", "rawpix"])
def test_loss_and_gradient_equal_official(g, kind):
    targets = patchify(g["patch/images"], g["patch_size"])
    if kind == "normpix":
        targets = normalise_patches(targets)
        torch.testing.assert_close(targets, g["loss/normpix_target"], rtol=1e-5, atol=1e-6)
    predictions = g["loss/pred"].clone().requires_grad_()
    loss = reconstruction_loss(predictions, targets, g["loss/mask"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), g[f"loss/{kind}"], **LOSS)
    torch.testing.assert_close(predictions.grad, g[f"loss/{kind}_grad_pred"], **GRADIENT)


def test_whole_forward_and_backward_equal_official(g):
    recipe = MAERecipe(
        decoder_width=g["decoder_embed_dim"],
        decoder_depth=g["decoder_depth"],
        decoder_heads=g["decoder_num_heads"],
    )
    spec = backbones.describe(
        "vit_mini_patch8",
        g["img_size"],
        patch_size=g["patch_size"],
        embed_dim=g["embed_dim"],
        depth=g["depth"],
        num_heads=g["num_heads"],
        mlp_ratio=g["mlp_ratio"],
    )
    decoder = Decoder(g["embed_dim"], g["img_size"] // g["patch_size"], g["patch_size"], recipe)
    student = Autoencoder(backbones.build(spec), decoder)
    names = {name: official(name) for name in student.state_dict()}
    student.load_state_dict({name: g[f"full/param/{theirs}"] for name, theirs in names.items()})
    masking = random_masking(g["full/noise"], g["mask_ratio"])
    latent, predictions = student(g["full/images"], masking)
    targets = normalise_patches(patchify(g["full/images"], g["patch_size"]))
    loss = reconstruction_loss(predictions, targets, masking.mask)
    loss.backward()
    torch.testing.assert_close(latent.detach(), g["full/latent"], rtol=0, atol=1e-5)
    torch.testing.assert_close(predictions.detach(), g["full/pred"], rtol=0, atol=1e-5)
    torch.testing.assert_close(loss.detach(), g["full/loss"], **LOSS)
    checked = 0
    for name, parameter in student.named_parameters():
        expected = g.get(f"full/grad/{names[name]}")
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected, **GRADIENT)
            checked += 1
    assert checked == sum(key.startswith("full/grad/") for key in g)


def test_positions_equal_official(g):
    table = backbones.sincos_positions(g["pos/dim"], g["pos/grid"], cls=True)[0]
    torch.testing.assert_close(table, g["pos/sincos_with_cls"], rtol=0, atol=1e-6)
    method = MAE(MAERecipe.tiny())
    assert not method.student.backbone.pos_embed.requires_grad
    assert torch.equal(method.student.backbone.pos_embed, backbones.sincos_positions(96, 8, cls=True))


def test_schedule_equals_official(g):
    recipe = dataclasses.replace(
        MAERecipe.tiny(), lr=g["sched/base_lr"], warmup_epochs=g["sched/warmup_epochs"]
    )
    batch = g["sched/batch_per_gpu"] * g["sched/world_size"] * g["sched/accum_iter"]
    plan = Plan(g["sched/epochs"], g["sched/iters_per_epoch"], batch, images=1)
    np.testing.assert_allclose(MAE(recipe).schedules(plan)["lr"], g["sched/lr"].numpy(), atol=1e-12, rtol=0)


def test_parameter_groups_equal_official(g):
    recipe = dataclasses.replace(MAERecipe.tiny(), decoder_depth=1)
    decayed, plain = MAE(recipe).parameter_groups()

    def names(group):
        return {official(n) for n, _ in group.parameters if "blocks." not in n or "blocks.0." in n}

    assert names(decayed) == set(g["groups/decay"].split("\n"))
    assert names(plain) == set(g["groups/no_decay"].split("\n"))


def test_backbone_without_cls_token_is_refused():
    recipe = dataclasses.replace(MAERecipe.tiny(), backbone="swin_mini_patch4")
    with pytest.raises(backbones.UnfitBackbone, match="vit"):
        MAE(recipe)
