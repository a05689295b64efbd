"""The sixteen official layouts, and other people's: the right network, nothing missing or left over."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.archive import open_archive
from dse_monitor.checkpoints.layouts import LAYOUTS, by_name
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.recognition.recognise import recognise
from dse_monitor.errors import AmbiguousArchitecture, UnknownLayout

FOLDER = Path(__file__).parents[1] / "data" / "layouts"
METHODS = sorted(file.stem for file in FOLDER.glob("*.json"))
LARGEST = (
    3_000_000  # numbers; every tensor of these encoders is smaller, and views of one storage keep files small
)

FIELDS = {  # what the codes store beside state dicts
    "epoch": 11,
    "args": argparse.Namespace(arch="vit_small", model="mae_vit_small_patch16", patch_size=16, lr=5e-4),
    "arch": "vit_small",
    "steps": 1234,
    "meta": {"epoch": 11, "iter": 999, "config": "", "mmcv_version": "1.3"},
    "config": {"model": {"backbone": {"type": "resnet50"}}},
    "loss": 0.5,
    "batch_size": 64,
    "world_size": 8,
    "lr": 1e-3,
    "scaler": {"scale": 65536.0},
    "fp16_scaler": {"scale": 65536.0},
    "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 3}},
}


def exclude_bias_and_norm(parameter):
    """Named by VICReg's optimiser groups; pickled by reference."""
    return parameter.ndim == 1


def described(method):
    return json.loads((FOLDER / f"{method}.json").read_text())


def checkpoint(layout, seed=0):
    """A checkpoint with every tensor of a layout, random, and the other entries its authors' code stores."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(LARGEST, generator=generator)

    def tensor(name, shape):
        count = math.prod(shape)
        if name.endswith(("num_batches_tracked", "queue_ptr", "relative_position_index")):
            return torch.zeros(shape, dtype=torch.int64)
        if count > LARGEST:  # queues and wide projectors, none of them part of an encoder
            return torch.zeros(1).expand(shape)
        start = int(torch.randint(LARGEST - count + 1, (), generator=generator))
        return pool[start : start + count].view(shape)

    content = {}
    for key in layout["top_level"]:
        if key in layout["tensors"]:
            content[key] = {name: tensor(name, shape) for name, shape in layout["tensors"][key].items()}
        elif key in ("optimizer", "opt"):
            group = {"lr": np.float64(0.1), "weight_decay_filter": exclude_bias_and_norm, "params": [0]}
            content[key] = {"state": {0: {"mu": torch.zeros(3)}}, "param_groups": [group]}
        else:
            content[key] = FIELDS[key]
    return content


def file_name(layout):
    pattern = layout.get("dse_file_pattern") or layout["file_pattern"]
    return Path(pattern.replace("{tag}", "jepa").format(epoch=10)).name


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    """Paths of one file per method, written when first asked for."""
    folder = tmp_path_factory.mktemp("official")
    made = {}

    def path(method):
        if method not in made:
            layout = described(method)
            made[method] = folder / method / file_name(layout)
            made[method].parent.mkdir()
            torch.save(checkpoint(layout), made[method])
        return made[method]

    return path


def expected_tensors(layout, encoder):
    """The state dict that belongs into timm's network, by the layout's own description."""
    content = checkpoint(layout)[encoder["top_key"]]
    prefix = encoder["prefix"]
    children = layout.get("sequential_index_to_timm", {})
    found = {}
    for name, tensor in content.items():
        rest = name.removeprefix(prefix)
        first, _, tail = rest.partition(".")
        dropped = (
            *encoder.get("drop_prefixes", ()),
            *encoder.get("drop_keys", ()),
            "fc.",
            "relative_position_index",
        )
        outside = (*encoder.get("ignore_top_prefixes", ()), "projection_head.", "prototypes.")
        if not name.startswith(prefix) or rest.startswith((*dropped, *outside)) or rest.endswith(dropped[-1]):
            continue
        name = f"{children[first]}.{tail}" if children else rest
        if ".downsample." in name and name.startswith("layers."):
            name = f"layers.{int(name.split('.')[1]) + 1}.{name.split('.', 2)[2]}"
        found[name] = tensor
    return found


@pytest.mark.parametrize("method", METHODS)
def test_official_checkpoint_loads_completely(official, method):
    layout = described(method)
    encoder = load_encoder(official(method))
    assert encoder.source.layout == method
    assert by_name(method).official
    expected = expected_tensors(layout, layout["encoder"])
    state = encoder.module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert encoder.source.encoder == by_name(method).networks[0].name
    if "num_heads" in layout:
        assert f"{layout['num_heads']} heads" in encoder.arch
    size = 14 if layout["timm_arch"].startswith("vit") else 7
    assert encoder.num_tokens == size * size
    assert encoder.image_size == (224, 224)
    assert encoder.epoch == (12 if method == "mae" else 11)  # MAE alone stores an index


@pytest.mark.parametrize("method", [m for m in METHODS if "alt_encoder" in described(m)])
def test_other_network_of_an_official_checkpoint_can_be_chosen(official, method):
    layout = described(method)
    place = f"{layout['alt_encoder']['top_key']}/{layout['alt_encoder']['prefix']}"
    name = by_name(method).networks[1].name
    by_the_name = load_encoder(official(method), encoder=name)
    expected = expected_tensors(layout, layout["alt_encoder"])
    state = by_the_name.module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[n], expected[n]) for n in expected)
    with open_archive(official(method)) as archive:
        assert (
            recognise(archive, ReadingOptions(encoder=place)).found.location
            == recognise(archive, ReadingOptions(encoder=name)).found.location
        )


@pytest.mark.parametrize("method", [m for m in METHODS if "norm_eps" in described(m)])
def test_norm_epsilon_is_the_authors(official, method):
    with open_archive(official(method)) as archive:
        assert recognise(archive).module.norm.eps == described(method)["norm_eps"]


def test_only_the_encoders_tensors_are_named_to_the_reader(official):
    with open_archive(official("mugs")) as archive:
        found = recognise(archive)
    assert set(found.sources()) == set(expected_tensors(described("mugs"), described("mugs")["encoder"]))
    assert any(name.startswith("relation_blocks") or ".relation_blocks." in name for name in found.unused)


@pytest.mark.parametrize("method", METHODS)
def test_layout_is_recognised_without_the_distributed_wrapper(tmp_path, method):
    content = checkpoint(described(method))
    for key in described(method)["tensors"]:
        content[key] = {name.replace("module.", "", 1): tensor for name, tensor in content[key].items()}
    torch.save(content, tmp_path / "checkpoint.pth")
    with open_archive(tmp_path / "checkpoint.pth") as archive:
        assert recognise(archive).layout.name == method


@pytest.mark.parametrize("method", ["dino", "swav", "byol"])
def test_compiled_networks_are_recognised(tmp_path, method):
    content = checkpoint(described(method))
    for key in described(method)["tensors"]:
        content[key] = {f"_orig_mod.{name}": tensor for name, tensor in content[key].items()}
    torch.save(content, tmp_path / "checkpoint.pth")
    with open_archive(tmp_path / "checkpoint.pth") as archive:
        assert recognise(archive).layout.name == method


RELEASED = {  # forms in which the authors publish a backbone on its own
    "dino": lambda t: t,
    "ibot": lambda t: {"state_dict": t},
    "mae": lambda t: {"model": t},
    "swav": lambda t: {f"module.{name}": tensor for name, tensor in t.items()},
    "barlowtwins": lambda t: t,
    "densecl": lambda t: {"state_dict": t, "author": "DenseCL"},
}


@pytest.mark.parametrize("method", RELEASED)
def test_released_backbones_load(tmp_path, method):
    layout = described(method)
    expected = expected_tensors(layout, layout["encoder"])
    torch.save(RELEASED[method](expected), tmp_path / "resnet50.pth")
    with open_archive(tmp_path / "resnet50.pth") as archive:
        heads = layout.get("num_heads")  # the file does not show them, and nothing says whose it is
        if heads and recognise(archive, ReadingOptions(num_heads=heads)).layout.name == "plain":
            with pytest.raises(AmbiguousArchitecture, match=f"--num-heads {heads}"):
                recognise(archive)
    encoder = load_encoder(tmp_path / "resnet50.pth", num_heads=heads)
    state = encoder.module.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert (encoder.epoch, encoder.step) == (None, None)


@pytest.fixture
def vit():
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=1, num_heads=3, num_classes=0)


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def copies(state):
    return {name: tensor + 1 for name, tensor in state.items()}


LIGHTNING = {"pytorch-lightning_version": "2.2.0", "epoch": 4, "global_step": 50}
OTHERS = {
    "timm": (
        "timm",
        "ema",
        lambda a, b: {"epoch": 4, "arch": "x", "state_dict": b, "state_dict_ema": a, "version": 2},
    ),
    "torchvision": (
        "torchvision",
        "model",
        lambda a, b: {"model": a, "optimizer": {}, "lr_scheduler": {}, "epoch": 4, "args": {}},
    ),
    "swin": (
        "swin",
        "encoder",
        lambda a, b: {
            "model": prefixed("encoder.", a),
            "optimizer": {},
            "lr_scheduler": {},
            "max_accuracy": 0.0,
            "epoch": 4,
        },
    ),
    "lightly-train": (
        "lightly-train",
        "teacher",
        lambda a, b: {
            **LIGHTNING,
            "state_dict": {
                **prefixed("student_embedding_model.wrapped_model._model.", b),
                **prefixed("teacher_embedding_model.wrapped_model._model.", a),
            },
        },
    ),
    "lightly-train without a teacher": (
        "lightly-train",
        "model",
        lambda a, b: {**LIGHTNING, "state_dict": prefixed("embedding_model.wrapped_model._model.", a)},
    ),
    "solo-learn": (
        "solo-learn",
        "backbone",
        lambda a, b: {
            **LIGHTNING,
            "hyper_parameters": {"method": "mocov3"},
            "state_dict": {**prefixed("momentum_backbone.", b), **prefixed("backbone.", a)},
        },
    ),
    "lightly": (
        "lightning",
        "teacher",
        lambda a, b: {
            **LIGHTNING,
            "state_dict": {**prefixed("student_backbone.vit.", b), **prefixed("teacher_backbone.vit.", a)},
        },
    ),
    "lightly with momentum": (
        "lightning",
        "encoder",
        lambda a, b: {
            **LIGHTNING,
            "state_dict": {**prefixed("backbone_momentum.", b), **prefixed("backbone.", a)},
        },
    ),
    "mmpretrain": ("mmpretrain", "backbone", None),
    "vissl": (
        "vissl",
        "trunk",
        lambda a, b: {
            "phase_idx": 4,
            "classy_state_dict": {"base_model": {"model": {"trunk": prefixed("_feature_blocks.", a)}}},
        },
    ),
    "dinov2 teacher": ("dinov2", "teacher", lambda a, b: {"teacher": prefixed("backbone.", a)}),
    "dinov2 rank": (
        "dinov2",
        "teacher",
        lambda a, b: {
            "model": {**prefixed("student.backbone.", b), **prefixed("teacher.backbone.", a)},
            "iteration": 4,
        },
    ),
    "plain teacher": ("plain", "teacher", lambda a, b: {"student": b, "teacher": a}),
    "plain average": ("plain", "ema", lambda a, b: {"net": b, "ema_model": prefixed("module.", a)}),
    "fsdp": (
        "plain",
        "encoder",
        lambda a, b: {
            "app": {
                "model": {
                    "_fsdp_wrapped_module." + name.replace(".0.", ".0._checkpoint_wrapped_module."): tensor
                    for name, tensor in a.items()
                }
            }
        },
    ),
}


@pytest.mark.parametrize("case", [name for name, (_, _, make) in OTHERS.items() if make])
def test_other_codes_are_recognised(saved, vit, case):
    layout, network, make = OTHERS[case]
    state = vit.state_dict()
    encoder = load_encoder(saved(make(state, copies(state))), num_heads=3)
    assert (encoder.source.layout, encoder.source.encoder) == (layout, network)
    loaded = encoder.module.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    if by_name(layout).epochs_from_field == 1:
        assert encoder.epoch == 5
    if case == "vissl":
        assert encoder.epoch == 5
    if case == "dinov2 rank":
        assert encoder.step == 5


def test_mmpretrain_transformers_are_recognised(saved, vit):
    state = {}
    for name, tensor in vit.state_dict().items():
        name = name.replace("patch_embed.proj.", "patch_embed.projection.").replace("blocks.", "layers.")
        name = name.replace(".norm1.", ".ln1.").replace(".norm2.", ".ln2.")
        name = name.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
        state["backbone." + ("ln1" + name[4:] if name.startswith("norm.") else name)] = tensor
    encoder = load_encoder(
        saved({"meta": {"epoch": 7, "iter": 700}, "state_dict": state}, "epoch_7.pth"), num_heads=3
    )
    assert (encoder.source.layout, encoder.epoch, encoder.step) == ("mmpretrain", 7, 700)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder.dense_tokens(images), vit.eval().forward_features(images)[:, 1:])


HF_BLOCK = {
    "attn.proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
}


def hugging_face(state):
    """A ViT in the names of Hugging Face transformers, with its projections apart."""
    out = {
        "vit.embeddings.cls_token": state["cls_token"],
        "vit.embeddings.position_embeddings": state["pos_embed"],
        "vit.embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "vit.embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "vit.layernorm.weight": state["norm.weight"],
        "vit.layernorm.bias": state["norm.bias"],
        "vit.pooler.dense.weight": torch.zeros(3, 3),
        "classifier.weight": torch.zeros(2, 3),
    }
    for name, tensor in state.items():
        if not name.startswith("blocks."):
            continue
        _, number, rest = name.split(".", 2)
        block = f"vit.encoder.layer.{number}."
        if rest.startswith("attn.qkv."):
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[f"{block}attention.attention.{part}.{rest[9:]}"] = rows.contiguous()
            continue
        for old, new in HF_BLOCK.items():
            rest = rest.replace(old, new)
        out[block + rest] = tensor
    return out


def test_hugging_face_folder_with_its_configuration(tmp_path, vit):
    from safetensors.torch import save_file

    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    save_file(hugging_face(vit.state_dict()), folder / "model.safetensors")
    config = {"model_type": "vit", "num_attention_heads": 6, "layer_norm_eps": 1e-4, "image_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trainer_state.json").write_text(json.dumps({"epoch": 2.5, "global_step": 500}))
    encoder = load_encoder(folder)
    assert (encoder.source.layout, encoder.epoch, encoder.step) == ("huggingface", 2.5, 500)
    assert "6 heads" in encoder.arch  # the configuration is believed, not the width
    assert encoder.module.norm.eps == 1e-4
    for block in vit.blocks:
        block.attn.num_heads, block.attn.head_dim, block.attn.scale = 6, 32, 32**-0.5
    for module in vit.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-4
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = vit.eval().forward_features(images)[:, 1:]
    assert torch.allclose(encoder.dense_tokens(images), expected, atol=1e-6)


def test_hugging_face_weights_alone_use_its_default_epsilon(saved, vit):
    encoder = load_encoder(saved(hugging_face(vit.state_dict())), num_heads=3)
    assert encoder.source.layout == "huggingface"
    assert encoder.module.norm.eps == 1e-12


def test_two_encoders_of_equal_right_must_be_chosen_between(saved, vit):
    path = saved({"first": vit.state_dict(), "second": copies(vit.state_dict())})
    with pytest.raises(AmbiguousArchitecture, match=r"'first/', 'second/'.*--encoder"):
        load_encoder(path)
    assert load_encoder(path, encoder="second/", num_heads=3).source.encoder == "second/"


def test_one_module_under_two_names_is_no_question(saved, vit):
    state = vit.state_dict()
    assert load_encoder(saved({"first": state, "second": state}), num_heads=3).source.layout == "plain"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_says_what_it_evaluates_and_shows_an_example(name):
    layout = by_name(name)
    assert layout.networks
    assert layout.evaluated
    assert layout.example


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_called_by_the_name_of_its_line(name):
    assert by_name(name).name == name


def test_official_layouts_are_those_whose_tensor_names_are_kept():
    assert sorted(name for name in LAYOUTS if by_name(name).official) == METHODS


def test_unknown_layout_name_lists_the_known_ones(saved, vit):
    with pytest.raises(UnknownLayout, match=r"no layout 'dyno'.*dino.*dse-monitor layouts"):
        load_encoder(saved(vit.state_dict()), layout="dyno")


def test_forced_layout_that_does_not_fit_says_where_encoders_are(saved, vit):
    with pytest.raises(UnknownLayout, match=r"layout 'byol' keeps its encoder at 'model/module\.target.*'/'"):
        load_encoder(saved(vit.state_dict()), layout="byol")


def test_a_forced_layout_reads_a_bare_backbone_its_own_way(saved):
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=384, depth=1, num_heads=12, num_classes=0)
    path = saved({"state_dict": vit.state_dict()}, "vit-s-300ep.pth.tar")
    encoder = load_encoder(path, layout="mocov3")
    assert "12 heads" in encoder.arch
    assert (encoder.source.layout, encoder.source.encoder) == ("mocov3", "momentum_encoder")
    with pytest.raises(AmbiguousArchitecture, match="--num-heads 6 if that is yours, or --layout NAME"):
        load_encoder(path)


def test_lightlys_query_backbone_is_taken_before_its_key_backbone(saved, vit):
    state = vit.state_dict()
    other = {name: value + 1 for name, value in state.items()}
    content = {
        "state_dict": {**prefixed("key_backbone.", other), **prefixed("query_backbone.", state)},
        "pytorch-lightning_version": "2.6",
        "epoch": 9,
    }
    path = saved(content, "epoch=9-step=1250.ckpt")
    query = load_encoder(path, num_heads=3).source.content
    assert query == load_encoder(saved(state), num_heads=3).source.content
    assert load_encoder(path, encoder="copy", num_heads=3).source.content != query
