"""Not one property of a network changes its tokens silently: it is read, refused, or listed as assumed.

Each case is two networks whose files have the same tensors and which give other tokens.
"""

import argparse
import json
from functools import partial

import pytest
import timm
import torch
from timm.layers import BlurPool2d
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.layouts import LAYOUTS, by_name
from dse_monitor.errors import AmbiguousArchitecture, FeatureError, UnknownLayout
from dse_monitor.facts import reading

VIT = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=4, num_classes=0)
NARROW = dict(channels=(8, 16, 24, 32), num_classes=0)
HEADS = {"num_heads": 4}


def vit(**options):
    return VisionTransformer(**{**VIT, **options})


def resnet(block=Bottleneck, **options):
    return ResNet(block, [1, 1, 1, 1], num_classes=0, **options)


def convnext(**options):
    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=0, **options)


def without_pool():
    model = resnet(BasicBlock)
    model.maxpool = nn.Identity()
    return model


# name of the property: the usual network, another with the same tensors, options to read both
SAME_TENSORS = {
    "activation": (vit, lambda: vit(act_layer=nn.ReLU), HEADS),
    "norm epsilon": (vit, lambda: vit(norm_layer=partial(nn.LayerNorm, eps=1e-2)), HEADS),
    "image shape": (vit, lambda: vit(img_size=(16, 64)), HEADS),
    "activation of a resnet": (resnet, lambda: resnet(act_layer=nn.SiLU), {}),
    "downsampling: dilated": (resnet, lambda: resnet(output_stride=8), {}),
    "downsampling: blurred": (resnet, lambda: resnet(aa_layer=BlurPool2d), {}),
    "downsampling: pooled": (resnet, lambda: resnet(aa_layer=nn.AvgPool2d), {}),
    "downsampling: no max pooling": (lambda: resnet(BasicBlock), without_pool, {}),
    "activation of a convnext": (convnext, lambda: convnext(act_layer="relu"), {}),
}


def shaken(model):
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            drawn = 0.3 * torch.randn(value.shape, generator=generator)
            value.copy_(
                drawn.abs() + 0.5 if name.endswith("running_var") else drawn + name.endswith("norm.weight")
            )
    return model.eval()


def images(encoder, channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, channels, *encoder.image_size, generator=generator)


@torch.no_grad()
def tokens(model, batch):
    features = model.forward_features(batch)
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    return features[:, model.num_prefix_tokens :]


@pytest.mark.parametrize("case", SAME_TENSORS)
def test_what_tensors_do_not_show_is_listed_as_assumed(saved, case):
    usual, other, options = SAME_TENSORS[case]
    usual, other = shaken(usual()), other().eval()
    other.load_state_dict(usual.state_dict(), strict=False)
    path = saved(usual.state_dict())
    encoder = load_encoder(path, **options)
    name = case.split(":")[0].split(" of ")[0]
    fact = next(fact for fact in encoder.facts if fact.name == name)
    assert fact.assumed
    assert fact.source
    batch = images(encoder)
    assert torch.allclose(encoder.dense_tokens(batch), tokens(usual, batch), atol=1e-5)
    if case != "image shape":  # which takes no square images
        expected = tokens(other, batch)
        same = expected.shape == tokens(usual, batch).shape and torch.allclose(
            expected, tokens(usual, batch), atol=1e-4
        )
        assert not same, "the case shows nothing: both networks give the same tokens"


def test_rotary_positions_beside_absolute_ones_are_suspected_and_otherwise_assumed_away(saved):
    options = dict(img_size=64, depth=1, embed_dim=48, num_heads=4, num_classes=0)
    rotary = timm.create_model("vit_small_patch16_rope_ape_224", **options)
    with pytest.raises(UnknownLayout, match=r"rotary positions beside the absolute ones.*--arch"):
        load_encoder(saved(rotary.state_dict()), **HEADS)
    facts = load_encoder(saved(vit().state_dict(), "plain.pth"), **HEADS).facts
    assert next(fact for fact in facts if fact.name == "positions").assumed


def test_heads_are_refused(saved):
    with pytest.raises(AmbiguousArchitecture, match="--num-heads"):
        load_encoder(saved(vit().state_dict()))


def test_normalisation_that_nobody_states_is_assumed_and_one_that_is_stated_is_used(saved):
    state = shaken(vit()).state_dict()
    bare = load_encoder(saved(state), **HEADS)
    assert {fact.name: fact.assumed for fact in bare.facts}["mean"]
    half = (0.5, 0.5, 0.5)
    settings = argparse.Namespace(mean=[0.5] * 3, std=[0.5] * 3, num_heads=4)
    stated = load_encoder(saved({"model": state, "args": settings}, "stated.pth"))
    assert (stated.preprocessing.mean, stated.preprocessing.std) == (half, half)
    fact = next(fact for fact in stated.facts if fact.name == "mean")
    assert (fact.assumed, fact.source) == (False, "mean of args in the file")
    asked = load_encoder(saved(state, "asked.pth"), **HEADS, mean=(0.5,), std=(0.25,))
    assert (asked.preprocessing.mean, asked.preprocessing.std) == (half, (0.25,) * 3)


# What is stated is built ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: vit(act_layer=nn.ReLU), {"num_heads": 4, "act_layer": "relu"}),
        (lambda: vit(norm_layer=partial(nn.LayerNorm, eps=1e-2)), {"num_heads": 4, "norm_eps": 1e-2}),
        (lambda: vit(img_size=(16, 64)), {"num_heads": 4, "img_size": [16, 64]}),
        (lambda: resnet(act_layer=nn.SiLU), {"act_layer": "silu"}),
        (lambda: convnext(act_layer="relu"), {"act_layer": "relu"}),
    ],
    ids=["activation", "epsilon", "shape", "resnet", "convnext"],
)
def test_what_is_stated_is_built_and_its_numbers_stand_apart(saved, make, settings):
    model = shaken(make())
    encoder = load_encoder(saved({"model": model.state_dict(), "args": settings}))
    batch = images(encoder)
    assert torch.allclose(encoder.dense_tokens(batch), tokens(model, batch), atol=1e-5)
    assert reading(encoder.arch, encoder.facts)
    usual = load_encoder(
        saved(make().state_dict(), "usual.pth"), **({"num_heads": 4} if "num_heads" in settings else {})
    )
    assert not reading(usual.arch, usual.facts)


def test_positions_of_images_that_are_not_square_keep_their_rows_and_columns(saved):
    model = shaken(vit(img_size=(16, 64)))
    encoder = load_encoder(
        saved({"model": model.state_dict(), "args": {"num_heads": 4, "img_size": (16, 64)}})
    )
    assert (encoder.grid, encoder.image_size) == ((2, 8), (16, 64))


def test_a_stated_size_that_does_not_fit_the_positions_is_not_believed(saved):
    content = {"model": vit().state_dict(), "args": {"num_heads": 4, "img_size": 224}}
    encoder = load_encoder(saved(content))
    assert encoder.image_size == (32, 32)
    assert next(fact for fact in encoder.facts if fact.name == "image shape").assumed


def test_an_image_size_that_learned_positions_do_not_have_is_refused(saved):
    with pytest.raises(
        FeatureError, match=r"--image-size 64 x 64 is 8 x 8 patches.*17 positions.*leave it out"
    ):
        load_encoder(saved(vit().state_dict()), **HEADS, image_size=64)


def test_positions_that_form_no_square_need_a_stated_size(saved):
    model = shaken(vit(img_size=(16, 40)))
    with pytest.raises(UnknownLayout, match=r"no square grid.*nothing in or beside the file says how high"):
        load_encoder(saved(model.state_dict()), **HEADS)
    encoder = load_encoder(saved({"model": model.state_dict(), "args": {"img_size": (16, 40)}}), **HEADS)
    batch = images(encoder)
    assert torch.allclose(encoder.dense_tokens(batch), tokens(model, batch), atol=1e-5)


def test_norm_before_the_blocks_is_refused_until_its_activation_is_stated(saved):
    model = shaken(vit(pre_norm=True, act_layer="quick_gelu"))
    state = model.state_dict()
    with pytest.raises(
        AmbiguousArchitecture, match=r"quick-GELU.*--arch vit_base_patch16_clip_quickgelu_224"
    ):
        load_encoder(saved(state), **HEADS)
    encoder = load_encoder(saved({"model": state, "args": {"act_layer": "QuickGELU"}}), **HEADS)
    batch = images(encoder)
    assert torch.allclose(encoder.dense_tokens(batch), tokens(model, batch), atol=1e-5)


def test_strides_that_a_configuration_sets_are_refused(saved):
    state = {f"backbone.{name}": value for name, value in resnet().state_dict().items()}
    text = "model = dict(backbone=dict(type='ResNet', depth=50, dilations=(1, 1, 2, 4)))"
    with pytest.raises(UnknownLayout, match=r"model\.backbone of meta\.cfg.*sets dilations .*--arch"):
        load_encoder(saved({"meta": {"cfg": text}, "state_dict": state}))
    usual = "model = dict(backbone=dict(type='ResNet', depth=50, dilations=(1, 1, 1, 1)))"
    encoder = load_encoder(saved({"meta": {"cfg": usual}, "state_dict": state}, "usual.pth"))
    assert not next(fact for fact in encoder.facts if fact.name == "downsampling").assumed


def test_images_as_opencv_reads_them_are_refused(saved):
    state = {f"backbone.{name}": value for name, value in resnet().state_dict().items()}
    text = "data_preprocessor = dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395])"
    with pytest.raises(UnknownLayout, match="in the order BGR"):
        load_encoder(saved({"meta": {"cfg": text}, "state_dict": state}))


def test_a_folder_of_hugging_face_leaves_nothing_open_but_how_pictures_are_cut(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    network = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=[16, 64], patch_size=8))
    network.save_pretrained(tmp_path)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 224, "width": 224}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    encoder = load_encoder(tmp_path)
    assert (encoder.grid, encoder.preprocessing.std) == ((2, 8), (0.25,) * 3)
    assert {fact.name for fact in encoder.facts if fact.assumed} == {"interpolation"}
    shape = next(fact for fact in encoder.facts if fact.name == "image shape")
    assert shape.source == "image_size in config.json"


# solo-learn and mmpretrain ----------------------------------------------------------------------------------


def test_solo_learns_moco_v3_has_twelve_heads_at_every_width(saved):
    model = shaken(vit(embed_dim=192, num_heads=12, depth=1))
    content = {
        "state_dict": {f"backbone.{name}": value for name, value in model.state_dict().items()},
        "pytorch-lightning_version": "2.1.2",
        "hyper_parameters": {"method": "mocov3", "backbone": {"name": "vit_tiny"}},
    }
    encoder = load_encoder(saved(content))
    assert encoder.source.layout == "solo-learn"
    batch = images(encoder)
    assert torch.allclose(encoder.dense_tokens(batch), tokens(model, batch), atol=1e-5)
    heads = next(fact for fact in encoder.facts if fact.name == "heads")
    assert (heads.value, heads.usual) == ("12", False)
    content["hyper_parameters"]["method"] = "dino"
    assert "3 heads" in load_encoder(saved(content, "dino.ckpt")).arch
    del content["hyper_parameters"]["backbone"]
    with pytest.raises(AmbiguousArchitecture, match="--num-heads"):
        load_encoder(saved(content, "bare.ckpt"))


@pytest.mark.parametrize(("arch", "heads"), [("mocov3-small", 12), ("deit-small", 6)])
def test_mmpretrains_heads_go_by_the_name_in_its_configuration(saved, arch, heads):
    model = shaken(vit(embed_dim=384, num_heads=heads, depth=1))
    text = (
        f"model = dict(type='X', backbone=dict(type='MoCoV3ViT', arch={arch!r}, img_size=32, patch_size=8))"
    )
    state = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    encoder = load_encoder(saved({"meta": {"cfg": text, "epoch": 3}, "state_dict": state}, "epoch_3.pth"))
    assert encoder.source.layout == "mmpretrain"
    batch = images(encoder)
    assert torch.allclose(encoder.dense_tokens(batch), tokens(model, batch), atol=1e-5)
    other = text.replace(arch, "base")  # whose width is another: its heads say nothing
    with pytest.raises(AmbiguousArchitecture, match="--num-heads"):
        load_encoder(saved({"meta": {"cfg": other, "epoch": 3}, "state_dict": state}, "other.pth"))


# Any number of channels -------------------------------------------------------------------------------------

CHANNELS = {
    "vit": (lambda c: vit(in_chans=c), HEADS),
    "resnet": (lambda c: resnet(in_chans=c), {}),
    "resnet, deep stem": (lambda c: resnet(in_chans=c, stem_type="deep", stem_width=32), {}),
    "convnext": (lambda c: convnext(in_chans=c), {}),
    "swin": (
        lambda c: SwinTransformer(
            img_size=64,
            in_chans=c,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(1, 2),
            window_size=4,
            num_classes=0,
        ),
        {"image_size": 64},
    ),
}


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("family", CHANNELS)
def test_images_of_any_number_of_channels_are_taken(saved, family, channels):
    make, options = CHANNELS[family]
    model = shaken(make(channels))
    path = saved(model.state_dict())
    with pytest.raises(AmbiguousArchitecture, match=rf"takes {channels} channels?, .*--mean and --std"):
        load_encoder(path, **options)
    encoder = load_encoder(path, **options, mean=(0.5,), std=(0.25,))
    assert encoder.preprocessing.channels == channels
    assert encoder.preprocessing.mean == (0.5,) * channels
    assert f"{channels} channel" in encoder.arch
    batch = images(encoder, channels)
    with torch.no_grad():
        features = model.forward_features(batch)
    expected = features.flatten(1, 2) if family == "swin" else tokens(model, batch)
    assert torch.allclose(encoder.dense_tokens(batch), expected, atol=1e-5)


# Layouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LAYOUTS if by_name(name).official])
def test_what_an_official_code_fixes_is_not_assumed(name):
    layout = by_name(name)
    assert layout.defines
    assert len(layout.mean) == len(layout.std) == 3


def test_a_layout_that_fixes_its_networks_assumes_nothing_but_how_pictures_are_cut(saved):
    teacher = {
        f"backbone.{name}": value for name, value in vit(embed_dim=192, num_heads=3).state_dict().items()
    }
    content = {"student": {f"module.{n}": v for n, v in teacher.items()}, "teacher": teacher, "dino_loss": {}}
    facts = load_encoder(saved(content, "checkpoint0001.pth")).facts
    assert {fact.name for fact in facts if fact.assumed} == {"interpolation", "crop", "resize"}
    assert {"heads", "activation", "norm epsilon", "positions", "image shape", "mean", "std"} <= {
        fact.name for fact in facts if not fact.assumed
    }


def test_swav_and_vicregl_divide_by_numbers_of_their_own():
    assert by_name("swav").std == by_name("vicregl").std == (0.228, 0.224, 0.225)
    assert by_name("dino").std == by_name("simsiam").std == (0.229, 0.224, 0.225)
