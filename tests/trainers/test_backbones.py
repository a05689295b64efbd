"""Which networks fit, and what is read from them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dse_monitor.checkpoints import load_encoder
from dse_monitor.trainers import backbones
from dse_monitor.trainers.backbones import UnfitBackbone
from dse_monitor.trainers.engine import saving
from dse_monitor.trainers.methods import load

FAMILIES = {
    "vit_mini_patch8": ("vit", 64, 96),
    "swin_mini_patch4": ("swin", 4 * 4, 128),
    "resnet_mini": ("conv", 2 * 2, 128),
    "convnext_mini": ("conv", 2 * 2, 128),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_pooled_and_dense_features(name):
    family, tokens, width = FAMILIES[name]
    spec = backbones.describe(name, 64)
    model = backbones.build(spec).eval()
    pooled, dense = backbones.features(model, torch.rand(2, 3, 64, 64))
    assert (spec.family, spec.width) == (family, width)
    assert pooled.shape == (2, width)
    assert dense.shape == (2, tokens, width)
    smaller = backbones.features(model, torch.rand(2, 3, 32, 32))
    assert smaller.dense.shape[0::2] == (2, width)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_trainable_parameter_takes_part_in_the_features(name):
    model = backbones.build(backbones.describe(name, 64))
    pooled, dense = backbones.features(model, torch.rand(2, 3, 64, 64))
    (pooled.sum() + dense.square().sum()).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle  # several processes would wait for their gradients


def test_option_that_is_none_reaches_timm():
    scaled, plain = (
        backbones.build(backbones.describe("convnext_mini", 64, **options)).state_dict()
        for options in ({}, {"ls_init_value": None})
    )
    assert set(scaled) - set(plain) == {name for name in scaled if name.endswith(".gamma")}


def test_vit_features_equal_timm_at_its_own_size():
    model = backbones.build(backbones.describe("vit_mini_patch8", 64)).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(backbones.vit_tokens(model, images), model.forward_features(images))


def test_masked_patches_are_replaced_before_positions_are_added():
    model = backbones.build(backbones.describe("vit_mini_patch8", 64)).eval()
    mask = torch.zeros(1, 64, dtype=torch.bool)
    mask[0, 5] = True
    token = torch.full((1, 96), 3.0)
    plain, masked = (backbones.vit_embed(model, torch.rand(1, 3, 64, 64), *m) for m in ((), (mask, token)))
    torch.testing.assert_close(masked[0, 5], 3.0 + model.pos_embed[0, 6])
    assert plain.shape == masked.shape == (1, 64, 96)


@pytest.mark.parametrize(
    ("name", "families", "reason"),
    [
        ("resnet_mini", ("vit",), "needs vit"),
        ("vit_mini_patch8", ("swin", "conv"), "needs swin or conv"),
        ("no_such_network", ("vit",), "timm has no model"),
        ("vit_base_patch16_dinov3", ("vit",), "no plain ViT"),
        ("vit_base_patch14_reg4_dinov2", ("vit",), "register tokens"),
        ("mlp_mixer", ("vit",), "timm has no model"),
    ],
)
def test_unfit_networks_are_refused_with_the_reason(name, families, reason):
    with pytest.raises(UnfitBackbone, match=reason):
        backbones.describe(name, 64, families)


@pytest.mark.parametrize("method", ["dino", "ibot", "mae", "mocov3", "mugs"])
def test_networks_without_a_cls_token_are_refused_where_a_loss_needs_one(method):
    method_type = load(method)
    recipe = dataclasses.replace(
        method_type.recipe_type.tiny(), backbone="vit_base_patch16_gap_224", image_size=224
    )
    with pytest.raises(UnfitBackbone, match="vit_base_patch16_gap_224 has no cls token"):
        method_type(recipe)


@pytest.mark.parametrize("name", ["mambaout_femto", "twins_svt_small", "swinv2_tiny_window8_256"])
def test_networks_without_a_map_of_features_are_refused(name):
    with pytest.raises(UnfitBackbone, match=f"{name} cannot be used with images of 64 pixels"):
        backbones.describe(name, 64)


def test_network_that_cannot_recompute_activations_is_refused():
    network = backbones.build(backbones.describe("hrnet_w18_small", 64))
    with pytest.raises(UnfitBackbone, match="leave --checkpointing out"):
        backbones.checkpoint_activations(network)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_mini", "resnet18"])
def test_what_features_do_not_depend_on_is_not_trained(name):
    model = backbones.build(backbones.describe(name, 64))
    features = backbones.features(model, torch.randn(2, 3, 64, 64))
    (features.dense.sum() + features.pooled.sum()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), key


def test_epsilon_reaches_every_layer_norm():
    model = backbones.build(backbones.describe("swin_mini_patch4", 64, norm_eps=1e-6))
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_networks_have_no_drop_path_unless_asked():
    for name in FAMILIES:
        model = backbones.build(backbones.describe(name, 64))
        drops = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
        assert not any(drops), name


def test_sincos_halves_encode_column_then_row():
    table = backbones.sincos_positions(8, 3, cls=True)
    assert table.shape == (1, 10, 8)
    assert not table[0, 0].any()
    grid = table[0, 1:].view(3, 3, 8)
    assert (grid[0, :, 4:] == grid[0, :1, 4:]).all()  # one row: the second half does not change
    assert (grid[:, 0, :4] == grid[:1, 0, :4]).all()  # one column: nor does the first
    angles = torch.tensor([1.0, 0.01])  # column 1 at the two frequencies of D = 8
    torch.testing.assert_close(grid[0, 1, :4], torch.cat([angles.sin(), angles.cos()]))
    other = backbones.sincos_positions(8, 3, rows_first=True)[0].view(3, 3, 8)
    torch.testing.assert_close(other, grid.transpose(0, 1))


def test_recomputed_activations_leave_gradients_alone():
    model = backbones.build(backbones.describe("vit_mini_patch8", 64))
    images, gradients = torch.rand(2, 3, 64, 64), []
    for recompute in (False, True):
        if recompute:
            backbones.checkpoint_activations(model)
        model.zero_grad()
        backbones.features(model, images).dense.square().sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("image_size", [64, 44])  # 44: windows of 4 leave one of eleven patches over
def test_monitor_sees_the_tokens_of_a_swin_that_training_sees(tmp_path, image_size):
    torch.manual_seed(0)
    spec = backbones.describe("swin_mini_patch4", image_size, depths=[2, 2, 2], norm_eps=1e-6)
    model = backbones.build(spec).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    content = {
        "format": saving.FORMAT,
        "schema": saving.SCHEMA,
        "backbone": saving._described(spec),
        "evaluated": "teacher.backbone.",
        "model": {f"teacher.backbone.{name}": value for name, value in model.state_dict().items()},
    }
    torch.save(content, tmp_path / "checkpoint_0001.pth")
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        expected = backbones.features(model, images).dense
    found = load_encoder(tmp_path / "checkpoint_0001.pth").dense_tokens(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
