"""What a file holds beside plain weights: averaged copies, targets, other libraries' nets, or no encoder."""

import copy
import gzip
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.archive import check_complete, open_archive
from dse_monitor.checkpoints.families.network import Hints, NotThisNetwork
from dse_monitor.checkpoints.families.positions import SINUSOID, sinusoid
from dse_monitor.checkpoints.families.statedicts import state_dicts
from dse_monitor.checkpoints.layouts import matching
from dse_monitor.checkpoints.layouts.layout import marks, why_taken
from dse_monitor.checkpoints.recognition import architecture
from dse_monitor.checkpoints.recognition.causes import no_encoder
from dse_monitor.errors import CheckpointError, IncompleteCheckpoint

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(seed=0, **options):
    torch.manual_seed(seed)
    sizes = dict(img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=0)
    vit = VisionTransformer(**sizes | options).eval()
    for parameter in vit.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return vit


def tokens(vit):
    with torch.no_grad():
        return vit.forward_features(IMAGES)[:, vit.num_prefix_tokens :]


def agrees(encoder, vit):
    return torch.allclose(encoder.dense_tokens(IMAGES), tokens(vit), atol=1e-4)


# Which of several networks


def under(name, vit):
    return {f"{name}.{key}": tensor for key, tensor in vit.state_dict().items()}


def averaged():
    """A file of ema-pytorch: both networks and its two counters."""
    return {
        **under("online_model", network(0)),
        **under("ema_model", network(1)),
        "initted": torch.tensor(True),
        "step": torch.tensor(700),
    }


def test_averaged_copy_of_ema_pytorch_is_taken(saved):
    encoder = load_encoder(saved(averaged()), num_heads=3)
    assert (encoder.source.layout, encoder.source.encoder) == ("ema-pytorch", "ema_model")
    assert agrees(encoder, network(1))
    assert agrees(load_encoder(saved(averaged()), encoder="online_model", num_heads=3), network(0))


def test_averaged_copy_inside_a_lightning_module_is_taken(saved):
    state = {f"ema.{name}": tensor for name, tensor in averaged().items()} | under("model", network(2))
    content = {"state_dict": state, "pytorch-lightning_version": "2.4", "epoch": 3, "global_step": 40}
    encoder = load_encoder(saved(content), num_heads=3)
    assert (encoder.source.layout, encoder.source.encoder, encoder.source.epoch) == (
        "lightning",
        "ema_model",
        4,
    )
    assert agrees(encoder, network(1))


@pytest.mark.slow
def test_ema_pytorch_itself_writes_what_is_read(saved):
    library = pytest.importorskip("ema_pytorch", reason="ema-pytorch is not installed")
    vit = network(0)
    ema = library.EMA(vit, beta=0.5, update_every=1, update_after_step=0)
    ema.update()
    vit.load_state_dict(network(1).state_dict())
    ema.update()
    assert agrees(load_encoder(saved(ema.state_dict()), num_heads=3), ema.ema_model)
    without = library.EMA(vit, include_online_model=False)
    assert agrees(
        load_encoder(saved({"model": vit.state_dict(), "ema": without.state_dict()}), num_heads=3),
        without.ema_model,
    )


@pytest.mark.parametrize(
    ("names", "taken", "because"),
    [
        (("context_encoder", "target_encoder"), "target_encoder", "I-JEPA and V-JEPA"),
        (("online_encoder", "target_encoder"), "online", "BYOL"),
        (("online_network.encoder", "target_network.encoder"), "online", "BYOL"),
        (("encoder", "target_encoder"), "encoder", "not named as a copy"),
        (("encoder", "ema_encoder"), "ema", "averaged copy"),
        (("student", "teacher"), "teacher", "methods with a teacher"),
        (("target_encoder",), "copy", ""),
    ],
)
@pytest.mark.parametrize("nested", [False, True], ids=["keys at the top", "one state dict"])
def test_which_network_is_taken_and_why(saved, names, taken, because, nested):
    nets = {name: network(seed) for seed, name in enumerate(names)}
    content = {name: vit.state_dict() for name, vit in nets.items()}
    if nested:
        content = {
            "model": {key: value for name, vit in nets.items() for key, value in under(name, vit).items()}
        }
    content["note"] = 1
    path = saved(content)
    encoder = load_encoder(path, num_heads=3)
    assert encoder.source.encoder == taken
    assert agrees(
        encoder, next(vit for name, vit in nets.items() if taken.split("_")[0] in name or len(nets) == 1)
    )
    archive = open_archive(path)
    states = state_dicts(archive.tree)
    (layout,) = matching(marks(archive.tree, states))[-1:]
    entry = next(each for each in layout.networks if each.name == taken)
    note = why_taken(entry, [("other", "elsewhere")])
    assert because in note
    assert "--encoder" in note
    assert why_taken(entry, []) is None


def test_codes_that_are_known_need_no_such_note():
    (layout,) = matching(frozenset({"epoch", "arch", "state_dict", "version"}))[:1]
    assert why_taken(layout.networks[0], [("model", "state_dict/")]) is None


# Positions that are not in the file


def mae_pytorch(vit):
    """What MAE-pytorch saves of an encoder with separate biases of query and value."""
    state = {}
    for name, tensor in vit.state_dict().items():
        if name.endswith("attn.qkv.bias"):
            block, width = name.removesuffix("qkv.bias"), len(tensor) // 3
            state[f"encoder.{block}q_bias"], state[f"encoder.{block}v_bias"] = (
                tensor[:width],
                tensor[2 * width :],
            )
        elif name != "pos_embed":
            state[f"encoder.{name}"] = tensor
    state |= {"encoder_to_decoder.weight": torch.zeros(96, 192), "mask_token": torch.zeros(1, 1, 96)}
    return state | {"decoder.norm.weight": torch.zeros(96), "decoder.blocks.0.norm1.weight": torch.zeros(96)}


def formula(count, width):
    """The table as MAE-pytorch describes it, one number at a time."""
    table = np.zeros((count, width))
    for position in range(count):
        for place in range(width):
            angle = position / np.power(10000, 2 * (place // 2) / width)
            table[position, place] = np.sin(angle) if place % 2 == 0 else np.cos(angle)
    return torch.tensor(table, dtype=torch.float32)[None]


def test_table_of_sinusoids_is_the_one_of_the_formula():
    assert torch.allclose(sinusoid(196, 384), formula(196, 384), atol=1e-7, rtol=0)


def test_positions_of_mae_pytorch_are_made_anew(saved):
    vit = network(
        img_size=224, patch_size=16, embed_dim=384, num_heads=6, class_token=False, global_pool="avg"
    )
    vit.pos_embed.data = formula(196, 384)
    for block in vit.blocks:
        block.attn.qkv.bias.data[384:768] = 0
    encoder = load_encoder(
        saved({"model": mae_pytorch(vit), "optimizer": {}, "epoch": 4, "scaler": {}, "args": None})
    )
    assert (encoder.source.layout, encoder.source.epoch, encoder.num_tokens) == ("mae-pytorch", 5, 196)
    assert any("sinusoids" in note for note in encoder.notes)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(encoder.dense_tokens(images), vit.forward_features(images), atol=1e-4)


def test_other_missing_positions_are_refused_for_what_they_are():
    shapes = {
        name: tuple(tensor.shape) for name, tensor in network().state_dict().items() if name != "pos_embed"
    }
    with pytest.raises(NotThisNetwork, match="no pos_embed: its positions are rotary, or a table"):
        architecture.recognise("vit", shapes, Hints())
    made = architecture.recognise(
        "vit", shapes, Hints(num_heads=3, details={"positions": SINUSOID}, image_size=(64, 64))
    )
    assert made.renamed["pos_embed"].shape == (1, 64, 192)


# Networks that are refused before anybody is asked for heads


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            {"blocks.0.attn.rel_pos_h": (15, 16), "blocks.0.attn.rel_pos_w": (15, 16)},
            "rel_pos_h.*SAM, ViTDet",
        ),
        ({"blocks.0.attn.relative_position_bias_table": (732, 3)}, "relative position biases, as in BEiT"),
        ({"blocks.1.attn.qkv.lora_up": (4, 4)}, r"blocks\.1\.attn\.qkv\.lora_up.*LoRA"),
        ({"blocks.1.norm1.weight": (200,)}, "100, 200 wide: stages of growing width, as in Hiera"),
    ],
)
def test_other_networks_blocks_are_named(extra, said):
    vit = network(embed_dim=100, num_heads=5)  # a width that says nothing about its heads
    shapes = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()} | extra
    with pytest.raises(NotThisNetwork, match=said):
        architecture.recognise("vit", shapes, Hints())


# Why there is no encoder


def cause(tmp_path, tree, name="model.pth"):
    torch.save(tree, tmp_path / name)
    archive = open_archive(tmp_path / name)
    states = state_dicts(archive.tree)
    return no_encoder(tmp_path / name, archive.tree, states)


ZEROS = torch.zeros(3)
CAUSES = {
    "FSDP1": (
        {"model": {"_fsdp_wrapped_module._flat_param": ZEROS}},
        "flat parameters of FSDP",
        "FULL_STATE_DICT",
    ),
    "FSDP1 of blocks": ({"blocks.0.flat_param_0": ZEROS}, r"flat_param_0", "FullStateDictConfig"),
    "ZeRO optimiser": (
        {"optimizer_state_dict": {"a": ZEROS}, "ds_version": "0.9"},
        "optimiser's part of one DeepSpeed rank",
        "zero_to_fp32",
    ),
    "ZeRO 3": (
        {"module": {"a": torch.zeros(0)}, "ds_version": "0.9"},
        "1 of its tensors are empty",
        "zero_to_fp32",
    ),
    "optimiser": (
        {"state": {0: {"exp_avg": ZEROS}}, "param_groups": [{"lr": 1}]},
        "state of an optimiser and holds no network",
        "model's weights",
    ),
    "optimiser below a key": (
        {"optimizer": {"state": {0: {"exp_avg": ZEROS}}}},
        "under 'optimizer'",
        "weights",
    ),
    "CLIP": ({"visual.transformer.resblocks.0.ln_1.weight": ZEROS}, "CLIP's own tower", "--network"),
    "vit-pytorch": ({"to_patch_embedding.1.weight": ZEROS}, "vit-pytorch", "--network"),
    "GPTQ": (
        {"layers.0.q.qweight": ZEROS, "layers.0.q.scales": ZEROS},
        "quantised by GPTQ or AWQ",
        "[Dd]equantise",
    ),
    "adapters": ({"base_model.model.x.lora_A.weight": ZEROS}, "low-rank factors", "merge_and_unload"),
    "Flax": ({f"params/{n}.kernel": ZEROS for n in range(9)}, "called kernel", "Convert"),
    "a head": ({"linear.weight": ZEROS}, r"only 1 tensors \(linear\.weight\)", "whole network"),
    "a list": ([ZEROS, ZEROS], "list of values without names", "state_dict"),
}


@pytest.mark.parametrize("kind", CAUSES)
def test_true_cause_and_what_to_do(tmp_path, kind):
    tree, problem, advice = CAUSES[kind]
    found = cause(tmp_path, tree)
    assert re.search(problem, found.problem), found
    assert re.search(advice, found.advice), found


def test_part_of_a_network_that_was_cut_up(tmp_path):
    torch.save({}, tmp_path / "consolidated.01.pth")
    many = {f"layers.{n}.weight": ZEROS for n in range(9)}
    assert "one of 2 files" in cause(tmp_path, many, "consolidated.00.pth").problem


def test_file_that_shows_no_cause_has_none(tmp_path):
    assert cause(tmp_path, {f"layers.{n}.weight": ZEROS for n in range(9)}) is None


QUANTISED = {
    "blocks.0.attn.qkv.weight.absmax": "bitsandbytes",
    "blocks.0.attn.qkv.weight.quant_state.bitsandbytes__nf4": "bitsandbytes",
    "blocks.0.attn.qkv.SCB": "LLM.int8",
    "blocks.0.attn.qkv.qweight": "GPTQ",
    "blocks.0.attn.qkv.weight_scale": "compressed-tensors",
    "blocks.0.attn.qkv.zero_point": "torch.ao",
    "blocks.0.attn.qkv.weight_fake_quant.scale": "quantisation-aware",
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_are_named_as_their_librarys(saved, name):
    state = network().state_dict() | {name: ZEROS}
    (found,) = architecture.encoders(state_dicts(open_archive(saved(state)).tree))
    with pytest.raises(NotThisNetwork, match=rf"qkv\.weight is quantised by .*{QUANTISED[name]}.*dequantise"):
        found.pieces()


def test_tensors_of_a_class_that_is_not_torchs_are_named(saved):
    state = network().state_dict()
    weight = state["blocks.0.attn.qkv.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own quantised types are on their way out
        state["blocks.0.attn.qkv.weight"] = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
        path = saved(state)
    (found,) = architecture.encoders(state_dicts(open_archive(path).tree))
    with pytest.raises(
        NotThisNetwork, match=r"blocks\.0\.attn\.qkv\.weight could not be read: a quantised tensor"
    ):
        found.pieces()


@pytest.mark.slow
def test_torchao_is_named(saved):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    vit = copy.deepcopy(network())
    quantization.quantize_(vit, quantization.Int8WeightOnlyConfig())
    (found,) = architecture.encoders(state_dicts(open_archive(saved(vit.state_dict())).tree))
    with pytest.raises(NotThisNetwork, match=r"torchao.*dequantise"):
        found.pieces()


# Files of other kinds


def compressed(function):
    return lambda: function(bytes(range(256)) * 4)


FILES = {
    "model.pth.gz": (compressed(gzip.compress), "gzip.*gunzip FILE"),
    "model.pth.xz": (lambda: b"\xfd7zXZ\0" + bytes(100), "xz.*unxz FILE"),
    "model.pth.zst": (lambda: b"\x28\xb5\x2f\xfd" + bytes(100), "zstd.*unzstd FILE"),
    "model.pth.bz2": (lambda: b"BZh91AY&SY" + bytes(100), "bzip2.*bunzip2 FILE"),
    "run.tar.gz": (compressed(gzip.compress), "compressed tar archive.*tar xf FILE"),
    "page.pth": (lambda: b"\n<!DOCTYPE html>\n<html lang=en>" + bytes(100), "HTML page.*Download it again"),
    "pointer.pth": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "log.pth": (lambda: b"epoch,loss\n" * 20, "is text .*epoch,loss.*Give the file with the weights"),
    "a.json": (
        lambda: b'{"image_size": 224, "hidden_size": 384, "num_attention_heads": 6, "x": 1}',
        "JSON text",
    ),
    "arrays.pkl": (lambda: pickle.dumps({"w": np.ones(40)}), "pickle of NumPy arrays"),
    "forest.joblib": (lambda: pickle.dumps(["sklearn.ensemble"] * 9) + bytes(64), "scikit-learn"),
    "flax.msgpack": (lambda: b"\x82\xa6params\x83\xa7encoder" + bytes(100), "msgpack.*Flax"),
    "net.onnx": (lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(100), "ONNX"),
    "net.gguf": (lambda: b"GGUF\3" + bytes(100), "GGUF"),
    "saved_model.pb": (lambda: b"\x08\x01\x12\xff" + bytes(100), "SavedModel"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_of_another_kind_is_named_with_what_to_do(tmp_path, name):
    write, said = FILES[name]
    (tmp_path / name).write_bytes(write())
    with pytest.raises(CheckpointError, match=said) as caught:
        open_archive(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    found = check_complete(tmp_path / name)
    assert found.whole
    assert found.reason == str(caught.value)


def test_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "a.pth").touch()
    with pytest.raises(IncompleteCheckpoint, match="is empty"):
        open_archive(tmp_path / "a.pth")


def test_exported_program_is_refused_with_the_way_out(tmp_path):
    program = torch.export.export(torch.nn.Linear(4, 4), (torch.zeros(2, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(CheckpointError, match=r"torch\.export, \.pt2.*\.state_dict, NEW_FILE"):
        open_archive(tmp_path / "net.pt2")
