"""What files say about their networks is read with its place, and nothing they hold can break the reader."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse_monitor.checkpoints.archive import Archive, Opaque
from dse_monitor.checkpoints.families.network import say
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.recognition import statements
from dse_monitor.checkpoints.recognition.sources import mmlab, values
from dse_monitor.errors import AmbiguousArchitecture
from dse_monitor.preprocessing import INTERPOLATIONS

HALF = (0.5, 0.5, 0.5)


def read(tree=None, sidecars=None, **options):
    archive = Archive(Path("x.pth"), "torch zip", tree or {}, sidecars=sidecars or {})
    return statements.read(archive, ReadingOptions(**options))


def processor(**fields):
    return read(sidecars={"preprocessor_config.json": fields})


def said(found, name):
    return (found[name].value, found[name].source)


# Hugging Face -----------------------------------------------------------------------------------------------


def test_image_processor_of_vit_squashes_and_normalises_with_halves():
    found = processor(
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        resample=2,
        size={"height": 224, "width": 224},
        rescale_factor=0.00392156862745098,
    )
    assert said(found, "mean") == (HALF, "image_mean in preprocessor_config.json")
    assert said(found, "std") == (HALF, "image_std in preprocessor_config.json")
    assert found["interpolation"].value == "bilinear"
    assert (found["crop_mode"].value, found["image_size"].value) == ("squash", (224, 224))
    assert "resize" not in found


def test_image_processor_of_dinov2_crops_the_centre():
    found = processor(
        size={"shortest_edge": 256},
        do_center_crop=True,
        crop_size={"height": 224, "width": 224},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    assert (found["resize"].value, found["image_size"].value) == ((256, 256), (224, 224))
    assert found["interpolation"].value == "bicubic"
    assert found["crop_mode"].value == "center_floor"


@pytest.mark.parametrize(("edge", "expected"), [(224, ("crop_pct", 0.875)), (384, ("crop_mode", "squash"))])
def test_image_processor_of_convnext_crops_small_images_alone(edge, expected):
    found = processor(size={"shortest_edge": edge}, crop_pct=0.875, resample=3)
    assert found["image_size"].value == (edge, edge)
    assert found[expected[0]].value == expected[1]
    assert ("crop_pct" in found) == (found["crop_mode"].value == "center_floor")


def test_processor_that_does_not_normalise_leaves_values_in_zero_to_one():
    found = processor(do_normalize=False, image_mean=[0.5] * 3)
    assert (found["mean"].value, found["std"].value) == ((0.0,), (1.0,))
    assert "do_normalize" in found["mean"].source


@pytest.mark.parametrize(
    ("fields", "factor"), [({"do_rescale": False}, 255), ({"rescale_factor": 1 / 127.5}, 2)]
)
def test_another_scale_of_pixels_goes_into_mean_and_std(fields, factor):
    found = processor(image_mean=[100.0], image_std=[50.0], **fields)
    assert found["mean"].value == pytest.approx((100 / factor,))
    assert found["std"].value == pytest.approx((50 / factor,))
    assert "rescaling" in found["std"].source


def test_configuration_of_transformers_is_read():
    config = {
        "num_attention_heads": 6,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu_new",
        "image_size": [32, 128],
    }
    found = read(sidecars={"config.json": config})
    assert said(found, "num_heads") == (6, "num_attention_heads in config.json")
    assert found["activation"].value == "gelu_tanh"
    assert (found["norm_eps"].value, found["image_size"].value) == (1e-12, (32, 128))
    assert all(each.read_before for each in found.values())


def test_configuration_of_timms_hub_folders_is_read():
    config = {
        "architecture": "vit_small_patch16_224",
        "pretrained_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bilinear",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "input_size": [3, 224, 224],
        },
    }
    found = read(sidecars={"config.json": config})
    assert said(found, "arch") == ("vit_small_patch16_224", "architecture in config.json")
    assert said(found, "mean") == (HALF, "mean of pretrained_cfg in config.json")
    assert (found["crop_pct"].value, found["interpolation"].value) == (0.9, "bilinear")
    assert found["image_size"].value == (224, 224)


@pytest.mark.parametrize(("quick", "activation"), [({"quick_gelu": True}, "quick_gelu"), ({}, "gelu")])
def test_open_clip_says_heads_activation_and_images(quick, activation):
    config = {
        "model_cfg": {
            **quick,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
        },
        "preprocess_cfg": {
            "mean": list(HALF),
            "std": list(HALF),
            "resize_mode": "squash",
            "interpolation": "bicubic",
        },
    }
    found = read(sidecars={"open_clip_config.json": config})
    assert (found["num_heads"].value, found["activation"].value) == (12, activation)
    assert (found["mean"].value, found["crop_mode"].value) == (HALF, "squash")


# Training codes ---------------------------------------------------------------------------------------------


def namespace(**fields):
    return Opaque("argparse.Namespace", state=fields)


def test_arguments_of_timms_training_come_before_its_configuration():
    tree = {"arch": "vit_small_patch16_224", "state_dict": {}, "version": 2}
    given = read({**tree, "args": namespace(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], crop_pct=0.95)})
    assert said(given, "mean") == ((0.1, 0.2, 0.3), "args.mean in the file")
    assert given["crop_pct"].value == 0.95
    left_open = read({**tree, "args": namespace(mean=None, std=None, crop_pct=None)})
    assert left_open["arch"].value == "vit_small_patch16_224"
    assert left_open["mean"].value == HALF  # timm's vision transformers of augreg
    assert "timm's configuration of vit_small_patch16_224" in left_open["mean"].source


def test_arch_is_no_timm_model_where_timm_did_not_write_the_file():
    assert "arch" not in read({"arch": "resnet50", "state_dict": {}, "epoch": 3})


@pytest.mark.parametrize(
    ("method", "name", "width", "heads"),
    [
        ("mocov3", "vit_small", 384, 12),
        ("mocov3", "vit_tiny", 192, 12),
        ("mae", "vit_small", 384, 12),
        ("dino", "vit_small", 384, 6),
        ("byol", "vit_tiny", 192, 3),
    ],
)
def test_solo_learns_heads_go_by_method_and_backbone(method, name, width, heads):
    config = Opaque("omegaconf.dictconfig.DictConfig", state={"_content": {"name": name}})
    found = read({"hyper_parameters": {"method": method, "backbone": config}})
    assert found["heads_by_width"].value == {width: heads}
    assert repr(name) in found["heads_by_width"].source
    assert "heads_by_width" not in read(
        {"hyper_parameters": {"method": method, "backbone": {"name": "resnet50"}}}
    )


def test_solo_learn_normalises_by_the_name_of_its_data():
    found = read({"hyper_parameters": {"method": "byol", "data": {"dataset": "cifar10"}}})
    assert said(found, "mean") == ((0.4914, 0.4822, 0.4465), "dataset 'cifar10' in hyper_parameters")


def test_lightly_train_stores_its_normalisation():
    found = read({"lightly_train": {"normalize_args": {"mean": list(HALF), "std": list(HALF)}}})
    assert said(found, "std") == (HALF, "std of lightly_train.normalize_args in the file")


def test_small_mae_of_the_paper_is_known_by_its_name():
    found = read({"args": namespace(model="mae_vit_small_patch16")})
    assert found["heads_by_width"].value == {384: 6}
    assert "heads_by_width" not in read({"args": namespace(model="mae_vit_base_patch16")})


def test_settings_in_settings_are_found_and_those_of_other_parts_are_not():
    inner = {"encoder": {"num_heads": 6}, "decoder": {"num_heads": 16}, "predictor": {"num_heads": 12}}
    found = read({"hyper_parameters": {"model": inner}})
    assert said(found, "num_heads") == (6, "hyper_parameters.model.encoder.num_heads in the file")
    assert not found["num_heads"].rival


def test_two_places_alike_that_disagree_are_left_to_the_user():
    found = read({"hyper_parameters": {"teacher": {"num_heads": 6}, "student": {"num_heads": 12}}})
    with pytest.raises(
        AmbiguousArchitecture,
        match=r"hyper_parameters\.teacher\.num_heads in the file says 6, "
        r"hyper_parameters\.student\.num_heads in the file says 12.*--num-heads",
    ):
        say(found, "num_heads")


def test_the_file_counts_more_than_a_file_beside_it_and_the_other_is_named():
    found = read(
        {"args": {"mean": list(HALF), "std": list(HALF)}},
        {"preprocessor_config.json": {"image_mean": [0.1, 0.1, 0.1], "image_std": [0.5, 0.5, 0.5]}},
    )
    assert say(found, "mean").value == HALF
    assert "image_mean in preprocessor_config.json says 0.1, 0.1, 0.1" in found["mean"].source


def test_what_the_user_says_comes_first():
    found = read({"args": {"mean": [0.1] * 3, "std": [0.1] * 3}}, mean=(0.5,), image_size=64)
    assert said(found, "mean") == ((0.5,), "--mean")
    assert said(found, "image_size") == ((64, 64), "--image-size")


def test_statistics_of_bytes_are_brought_to_zero_to_one():
    found = read({"config": {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}})
    assert found["mean"].value == pytest.approx((0.485, 0.456, 0.406))
    assert found["std"].value == pytest.approx((0.229, 0.224, 0.225))


# OpenMMLab --------------------------------------------------------------------------------------------------

CONFIG = """
_base_ = ['../_base_/default_runtime.py']
custom_imports = __import__('os').system('touch /tmp/executed')
temperature = 0.2
model = dict(
    type='MoCoV3',
    backbone=dict(type='MoCoV3ViT', arch='mocov3-small', img_size=224, patch_size=16,
                  norm_cfg=dict(type='LN', eps=1e-06)),
    head=dict(loss=dict(loss_weight=2 * temperature)),
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True))
"""


@pytest.mark.parametrize("place", ["cfg", "config"])
def test_configuration_in_python_is_read_and_not_run(place):
    found = read({"meta": {place: CONFIG, "epoch": 3}})
    assert found["heads_by_width"].value == {384: 12}
    assert "arch 'mocov3-small'" in found["heads_by_width"].source
    assert f"meta.{place}" in found["heads_by_width"].source
    assert (found["activation"].value, found["norm_eps"].value) == ("gelu", 1e-6)
    assert found["mean"].value == pytest.approx((0.485, 0.456, 0.406))
    assert found["channel_order"].value == "RGB"
    assert not Path("/tmp/executed").exists()


def test_mmpretrains_small_transformer_has_eight_heads_at_the_width_of_the_base():
    text = "model = dict(backbone=dict(type='VisionTransformer', arch='s'))"
    assert read({"meta": {"cfg": text}})["heads_by_width"].value == {768: 8}
    text = "model = dict(backbone=dict(type='VisionTransformer', arch=dict(embed_dims=96, num_heads=4)))"
    assert read({"meta": {"cfg": text}})["num_heads"].value == 4


def test_activation_and_strides_of_a_configuration_are_read():
    layers = "layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU'))"
    text = f"model = {{'backbone': dict(type='VisionTransformer', {layers})}}"
    assert read({"meta": {"cfg": text}})["activation"].value == "quick_gelu"
    text = (
        "model = dict(backbone=dict(type='ResNet', depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)))"
    )
    assert read({"meta": {"cfg": text}})["strides"].value.startswith("strides [1, 2, 1, 1]")
    assert read({"meta": {"cfg": "model = dict(backbone=dict(type='ResNet'))"}})["strides"].value == ""


def test_images_in_opencvs_order_are_noticed():
    text = "data_preprocessor = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0])"
    assert read({"meta": {"cfg": text}})["channel_order"].value == "BGR"


@pytest.mark.parametrize(
    "text",
    ["(" * 5000, "a = " + "-" * 100_000 + "1", "a = " + "1+" * 50_000 + "1", "x" * (2 << 20), "a = = 3", "\0",
     "a = [" + "[" * 90 + "]" * 90 + "]", "not " * 30_000 + "1", "a = {**b}", "a = dict(**b)", "a: int = 3"],
)  # fmt: skip
def test_texts_made_to_break_a_parser_are_left_alone(text):
    assert mmlab.parsed(text).get("model") is None


# Anything ---------------------------------------------------------------------------------------------------

FIELDS = (
    "mean", "std", "img_mean", "image_mean", "image_std", "num_heads", "num_attention_heads", "hidden_act",
    "act_layer", "layer_norm_eps", "norm_eps", "image_size", "img_size", "input_size", "size", "crop_size",
    "crop_pct", "resample", "rescale_factor", "do_rescale", "do_normalize", "do_center_crop", "do_resize",
    "interpolation", "in_chans", "num_channels", "arch", "architecture", "pretrained_cfg", "version",
    "state_dict", "method", "backbone", "name", "data", "dataset", "normalize_args", "model", "type",
    "norm_cfg", "eps", "layer_cfgs", "act_cfg", "strides", "dilations", "style", "data_preprocessor",
    "img_norm_cfg", "to_rgb", "vision_cfg", "model_cfg", "preprocess_cfg", "quick_gelu", "width",
    "head_width", "height", "shortest_edge", "rope_theta", "rope_parameters", "crop_mode", "resize_mode",
    "image_processor", "model_kwargs", "timm_model_name", "_modules", "attn", "state",
)  # fmt: skip
PLACES = (
    "args",
    "config",
    "cfg",
    "hyper_parameters",
    "opt",
    "model_args",
    "backbone",
    "meta",
    "lightly_train",
)
BESIDE = ("config.json", "preprocessor_config.json", "open_clip_config.json")

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.sampled_from(
        ["gelu", "bicubic", "vit_small", "mocov3", "VisionTransformer", "ResNet", "LN", "squash"]
    ),
    st.just([0.5] * 3),
    st.just([0.5] * 5000),
)
keys = st.one_of(st.sampled_from(FIELDS), st.text(max_size=5), st.integers())
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=8),
        st.dictionaries(st.sampled_from(FIELDS), inner, max_size=8).map(lambda d: Opaque("x.Y", state=d)),
    ),
    max_leaves=15,
)

CHECKS = {
    "mean": lambda v: all(math.isfinite(x) for x in v) and 1 <= len(v) <= values.MAX_CHANNELS,
    "std": lambda v: all(math.isfinite(x) and x > 0 for x in v) and 1 <= len(v) <= values.MAX_CHANNELS,
    "interpolation": lambda v: v in INTERPOLATIONS,
    "crop_mode": lambda v: v in ("center", "squash"),
    "crop_pct": lambda v: 0 < v <= 1,
    "resize": lambda v: len(v) == 2 and all(type(x) is int and x > 0 for x in v),
    "own_image_size": lambda v: len(v) == 2 and all(type(x) is int and x > 0 for x in v),
    "image_size": lambda v: len(v) == 2 and all(type(x) is int and 0 < x <= values.MAX_SIDE for x in v),
    "channel_order": lambda v: v in ("RGB", "BGR"),
    "arch": lambda v: v.isprintable(),
    "num_heads": lambda v: type(v) is int and v > 0,
    "heads_by_width": lambda v: all(w % h == 0 for w, h in v.items()),
    "activation": lambda v: isinstance(v, str) and 0 < len(v) <= values.MAX_WORD,
    "norm_eps": lambda v: 0 < v < 1,
    "rope_theta": lambda v: v > 1,
    "in_chans": lambda v: type(v) is int and v > 0,
    "strides": lambda v: isinstance(v, str) and len(v) < 200,
}


@settings(max_examples=120, deadline=None)
@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(PLACES, trees)),
    st.fixed_dictionaries({}, optional=dict.fromkeys(BESIDE, trees)),
)
def test_whatever_stands_there_is_left_out_or_has_a_meaning(tree, sidecars):
    for name, one in read(tree, sidecars).items():
        assert CHECKS[name](one.value), (name, one)
        assert one.source


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=200), st.dictionaries(keys, trees, max_size=5))
def test_any_text_as_a_configuration_is_survived(text, config):
    read({"meta": {"cfg": text}})
    read({"meta": {"cfg": f"model = {config!r}"}})
    read({"meta": {"config": config}})


def test_json_of_any_kind_beside_the_weights_is_survived(tmp_path):
    for content in ("[]", "3", '"x"', "null", json.dumps({"architecture": 3, "pretrained_cfg": []})):
        assert read(sidecars=dict.fromkeys(BESIDE, json.loads(content))) == {}
