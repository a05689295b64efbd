"""MAE against vectors made with facebookresearch/mae, at the tolerances of its fact sheet."""

import dataclasses

import numpy as np
import pytest
import torch

from dse_monitor.trainers import backbones
from dse_monitor.trainers.method import Plan, Progress, Views
from dse_monitor.trainers.methods.mae import (
    MAE,
    Autoencoder,
    Decoder,
    MAERecipe,
    normalise_patches,
    patchify,
    random_masking,
    reconstruction_loss,
    unpatchify,
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
    patches = patchify(g["patch/images"], g["patch_size"])
    assert torch.equal(patches, g["patch/patches"])
    assert torch.equal(unpatchify(patches, g["patch_size"]), g["patch/images"])


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
    grid = g["img_size"] // g["patch_size"]
    decoder = Decoder(g["embed_dim"], grid, g["patch_size"], recipe, mlp_ratio=g["mlp_ratio"])
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
        MAERecipe.tiny(),
        lr=g["sched/base_lr"],
        final_lr=g["sched/min_lr"],
        warmup_epochs=g["sched/warmup_epochs"],
    )
    parts = g["sched/accum_iter"]
    batch = g["sched/batch_per_gpu"] * g["sched/world_size"] * parts
    plan = Plan(g["sched/epochs"], g["sched/iters_per_epoch"] // parts, batch, images=1)
    lr = MAE(recipe).schedules(plan)["lr"]
    # theirs moves once per optimiser step and is listed once per micro-batch
    np.testing.assert_allclose(np.repeat(lr, parts), g["sched/lr"].numpy(), atol=1e-12, rtol=0)


def test_parameter_groups_equal_official(g):
    recipe = dataclasses.replace(MAERecipe.tiny(), decoder_depth=1)
    decayed, plain = MAE(recipe).parameter_groups()

    def first_blocks(names):
        return {name for name in names if "blocks." not in name or "blocks.0." in name}

    for group, name in ((decayed, "decay"), (plain, "no_decay")):
        ours = first_blocks(official(n) for n, _ in group.parameters)
        assert ours == first_blocks(g[f"groups/{name}"].split("\n"))


def test_backbone_without_cls_token_is_refused():
    recipe = dataclasses.replace(MAERecipe.tiny(), backbone="swin_mini_patch4")
    with pytest.raises(backbones.UnfitBackbone, match="vit"):
        MAE(recipe)


# What is easily got wrong, one claim each ------------------------------------------------------------------


def test_survivors_stay_in_the_order_of_their_noise():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4]])
    masking = random_masking(noise, 0.5)
    assert masking.kept.tolist() == [[1, 5, 3, 7]]
    assert masking.mask.tolist() == [[1, 0, 1, 0, 1, 0, 1, 0]]
    ranked = noise.gather(1, noise.argsort(1))
    assert torch.equal(ranked.gather(1, masking.restore), noise)


@pytest.mark.parametrize(("patches", "ratio", "kept"), [(196, 0.75, 49), (25, 0.6, 10), (10, 0.9, 0)])
def test_number_of_survivors_is_cut_off_as_released(patches, ratio, kept):
    assert random_masking(torch.rand(2, patches), ratio).kept.shape == (2, kept)


def test_ratio_of_zero_still_shuffles_and_is_undone_by_restore():
    noise = torch.rand(3, 9)
    masking = random_masking(noise, 0.0)
    assert not masking.mask.any()
    places = torch.arange(9).expand(3, 9)
    assert not torch.equal(masking.kept, places)
    assert torch.equal(masking.kept.gather(1, masking.restore), places)


def test_every_image_hides_other_patches():
    kept = random_masking(torch.rand(8, 64), 0.75).kept.sort(1).values
    assert len({tuple(row) for row in kept.tolist()}) == 8


def test_channel_is_the_fastest_in_a_patch():
    image = torch.zeros(1, 3, 4, 4)
    image[0, 2, 1, 2] = 1.0  # blue; row 1, column 2: the second patch of two columns, its row 1, column 0
    patches = patchify(image, 2)
    assert patches.shape == (1, 4, 12)
    assert patches.nonzero().tolist() == [[0, 1, (1 * 2 + 0) * 3 + 2]]


def test_target_variance_is_unbiased_and_epsilon_is_under_the_root():
    patch = torch.tensor([0.0, 1e-3, 2e-3])
    expected = (patch - 1e-3) / (1e-6 + 1e-6) ** 0.5  # the unbiased variance is 1e-6
    torch.testing.assert_close(normalise_patches(patch), expected)


def test_loss_is_the_mean_over_all_removed_patches_of_the_batch():
    predictions, targets = torch.zeros(2, 2, 3), torch.ones(2, 2, 3)
    targets[1] = 3.0
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])  # uneven: a mean of the images' means would be 5
    assert reconstruction_loss(predictions, targets, mask).item() == pytest.approx((1 + 1 + 9) / 3)


def test_kept_patches_cost_nothing():
    predictions = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[1.0, 0.0, 0.0, 1.0]]).expand(2, -1)
    reconstruction_loss(predictions, torch.randn(2, 4, 3), mask).backward()
    assert not predictions.grad[:, 1:3].any()
    assert predictions.grad[:, [0, 3]].all()


def test_positions_are_fixed_and_transposed_against_moco_v3s():
    method = MAE(MAERecipe.tiny())
    ours = backbones.sincos_positions(96, 8)[0].unflatten(0, (8, 8))
    mocov3 = backbones.sincos_positions(96, 8, rows_first=True)[0].unflatten(0, (8, 8))
    torch.testing.assert_close(ours.transpose(0, 1), mocov3)
    assert not torch.equal(ours, mocov3)
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert frozen == {"student.backbone.pos_embed", "student.decoder.pos_embed"}


def test_targets_are_float32_whatever_the_forward_runs_in():
    method = MAE(MAERecipe.tiny())
    images = torch.randn(2, 3, 64, 64) * 1e-2 + 3  # in bfloat16 a patch's variance would be rounding
    seen = {}

    def decoder(latent, restore):
        return torch.zeros(*restore.shape, 8 * 8 * 3, dtype=torch.bfloat16)

    method.student.decoder.forward = decoder
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            seen[enabled] = method(Views([images]), Progress(Plan(1, 1, 2, 2))).loss
    torch.testing.assert_close(seen[True], seen[False], rtol=1e-6, atol=0)


def test_matrices_start_as_xaviers_and_so_does_the_patch_projection():
    torch.manual_seed(0)
    student = MAE(MAERecipe.tiny()).student
    for layer in (
        student.backbone.patch_embed.proj,
        student.backbone.blocks[0].attn.qkv,
        student.decoder.pred,
    ):
        weight = layer.weight.detach().flatten(1)
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound
    assert not student.decoder.pred.bias.any()
    assert student.backbone.patch_embed.proj.bias.all()  # torch's start of a convolution
    for token in (student.backbone.cls_token, student.decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.3)


def test_nothing_but_the_batch_scales_the_learning_rate_and_no_warmup_starts_at_the_peak():
    recipe = dataclasses.replace(MAERecipe.tiny(), lr=1.5e-4, warmup_epochs=0)
    lr = MAE(recipe).schedules(Plan(3, 4, 512, images=2048))["lr"]
    assert lr[0] == pytest.approx(3e-4)
    assert (np.diff(lr) < 0).all()
