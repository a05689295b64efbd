"""From a path to an encoder: the authors' own small networks, progress, and every refusal's words."""

import argparse
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.archive import Archive
from dse_monitor.checkpoints.load import is_finite
from dse_monitor.errors import AmbiguousArchitecture, UnknownLayout

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
ARGS = argparse.Namespace(arch="vit_small", patch_size=16)


def golden(method, prefix):
    vectors = torch.load(GOLDEN / f"{method}.pt", weights_only=True)
    start = f"{prefix}/param/"
    return vectors, {name.removeprefix(start): t for name, t in vectors.items() if name.startswith(start)}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=1, num_heads=3, num_classes=0)


def dino(state, **more):
    teacher = prefixed("backbone.", state)
    return {
        "student": prefixed("module.", teacher),
        "teacher": teacher,
        "dino_loss": {},
        "args": ARGS,
        **more,
    }


def test_esvits_own_network_is_read_whole_from_its_tensors(saved):
    vectors, state = golden("esvit", "swin")
    content = {
        "student": prefixed("module.", state),
        "teacher": state,
        "dino_loss": {},
        "epoch": 3,
        "args": ARGS,
    }
    encoder = load_encoder(saved(content, "checkpoint0002.pth"))
    assert (encoder.source.layout, encoder.epoch) == ("esvit", 3)
    for images, regions in (("images_global", "global_regions"), ("images_local", "local_regions")):
        tokens = encoder.dense_tokens(vectors[f"swin/{images}"])
        assert torch.allclose(tokens, vectors[f"swin/{regions}"], atol=1e-5)


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_ibots_own_network_gives_its_tokens(saved, network):
    vectors, state = golden("ibot", "vit")
    teacher = {name: tensor for name, tensor in state.items() if name != "masked_embed"}
    content = {
        "student": prefixed("module.backbone.", state),
        "teacher": prefixed("backbone.", teacher),
        "ibot_loss": {},
        "epoch": 41,
        "args": ARGS,
    }
    encoder = load_encoder(saved(content, "checkpoint0040.pth"), encoder=network, num_heads=2)
    assert encoder.source.layout == "ibot"
    tokens = encoder.dense_tokens(vectors["vit/images"])
    assert torch.allclose(tokens, vectors["vit/out_unmasked"][:, 1:], atol=1e-5)


def test_mugs_own_network_gives_its_tokens(saved):
    vectors, state = golden("mugs", "vit")
    content = {
        "student": prefixed("module.backbone.", state),
        "teacher": {**prefixed("backbone.", state), "instance_head.projector.0.weight": torch.zeros(3, 8)},
        "instance-sup.": {},
        "local-group-sup.": {},
        "group-sup.": {},
        "epoch": 51,
        "args": ARGS,
    }
    encoder = load_encoder(saved(content, "checkpoint0050.pth"), num_heads=2)
    assert encoder.source.layout == "mugs"
    assert torch.allclose(
        encoder.dense_tokens(vectors["vit/images"]), vectors["vit/tokens"][:, 1:], atol=1e-5
    )


def test_ijepas_own_encoder_gives_its_tokens_and_the_target_others(saved):
    vectors, state = golden("ijepa", "encoder")
    target = {name: tensor * 1.1 for name, tensor in state.items()}
    content = {
        "encoder": prefixed("module.", state),
        "target_encoder": prefixed("module.", target),
        "predictor": {},
        "epoch": 49,
    }
    path = saved(content, "jepa-ep50.pth.tar")
    encoder = load_encoder(path, num_heads=2)
    expected = vectors["encoder/out_full"]
    assert torch.allclose(encoder.dense_tokens(vectors["encoder/images"]), expected, atol=1e-5)
    assert encoder.epoch == 49
    assert not encoder.notes  # the name runs ahead by convention, so it agrees
    other = load_encoder(path, num_heads=2, encoder="target_encoder")
    assert (other.dense_tokens(vectors["encoder/images"]) - expected).abs().max() > 1e-3


def test_maes_own_encoder_gives_its_latent(saved):
    """The vectors are masked, so the kept patches are sent through the loaded blocks by hand."""
    vectors, state = golden("mae", "full")
    path = saved({"model": state, "epoch": 20, "scaler": {}, "args": ARGS}, "checkpoint-20.pth")
    with pytest.raises(AmbiguousArchitecture, match="--num-heads"):
        load_encoder(path)
    encoder = load_encoder(path, num_heads=2)
    assert (encoder.source.layout, encoder.epoch) == ("mae", 21)
    network = encoder.module
    kept = vectors["full/noise"].argsort(1)[:, :4]
    with torch.no_grad():
        tokens = network.patch_embed(vectors["full/images"]) + network.pos_embed[:, 1:]
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        first = (network.cls_token + network.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        latent = network.norm(network.blocks(torch.cat([first, tokens], 1)))
    assert torch.allclose(latent, vectors["full/latent"], atol=1e-5)


@pytest.mark.parametrize("width", [192, 384])
def test_moco_v3_never_gets_the_usual_heads(saved, width):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=width, depth=1, num_heads=12, num_classes=0)
    state = {
        **prefixed("module.momentum_encoder.", vit.state_dict()),
        **prefixed("module.base_encoder.", vit.state_dict()),
    }
    path = saved({"epoch": 1, "arch": "vit_small", "state_dict": state}, "checkpoint_0000.pth.tar")
    if width == 192:  # not one of its models: 3 would be usual, 6 would be its head width
        with pytest.raises(AmbiguousArchitecture, match=r"moco-v3 define 384: 12, 768: 12.*--num-heads"):
            load_encoder(path)
        return
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = vit.eval().forward_features(images)[:, 1:]
    assert torch.allclose(load_encoder(path).dense_tokens(images), expected, atol=1e-6)
    with pytest.raises(AmbiguousArchitecture, match=r"vit_small_patch16_224 has 6 attention heads.*have 12"):
        load_encoder(path, arch="vit_small_patch16_224")


def test_heads_in_the_files_own_settings_are_believed(saved):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=4, num_classes=0)
    settings = argparse.Namespace(model={"width": 24, "num_heads": 4})
    encoder = load_encoder(saved({"model": vit.state_dict(), "args": settings}))
    assert "4 heads" in encoder.arch


def test_our_own_trainers_files_load(tmp_path, write_checkpoint):
    encoder = load_encoder(write_checkpoint(tmp_path / "checkpoint_0004.pth"))
    assert (encoder.source.layout, encoder.source.encoder) == ("dse-train", "teacher")
    assert (encoder.epoch, encoder.step, encoder.image_size) == (4, 40, (32, 32))
    assert encoder.arch.startswith("vit 24x2, 2 heads, patch 8")


def test_named_timm_model_is_built_as_named(saved):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("eva02_tiny_patch14_224", img_size=56, num_classes=0).eval()
    path = saved(model.state_dict())
    with pytest.raises(UnknownLayout, match="--arch"):
        load_encoder(path)
    encoder = load_encoder(path, arch="eva02_tiny_patch14_224")
    images = torch.randn(1, 3, *encoder.image_size)
    assert encoder.image_size == (56, 56)
    with torch.no_grad():
        expected = model.forward_features(images)[:, model.num_prefix_tokens :]
    assert torch.allclose(encoder.dense_tokens(images), expected, atol=1e-6)


def test_unknown_timm_name_offers_near_ones(saved, vit):
    with pytest.raises(
        UnknownLayout, match=r"timm has no model 'vit_tinny_patch16_224'.*vit_tiny_patch16_224"
    ):
        load_encoder(saved(vit.state_dict()), arch="vit_tinny_patch16_224")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32(saved, vit, dtype):
    state = {name: tensor.to(dtype) for name, tensor in vit.state_dict().items()}
    encoder = load_encoder(saved(state), num_heads=3)
    assert all(parameter.dtype == torch.float32 for parameter in encoder.module.parameters())
    assert torch.equal(encoder.module.state_dict()["norm.weight"], state["norm.weight"].float())


def test_only_the_encoders_bytes_are_read(saved, vit, monkeypatch):
    read = []
    original = Archive.read
    monkeypatch.setattr(
        Archive, "read", lambda self, refs, *rest: read.extend(refs) or original(self, refs, *rest)
    )
    load_encoder(saved(dino(vit.state_dict(), optimizer={"state": {0: {"exp_avg": torch.zeros(1000)}}})))
    assert sum(ref.nbytes for ref in read) == sum(t.nbytes for t in vit.state_dict().values())


def test_equal_weights_have_equal_digests_under_any_name(saved, vit, tmp_path):
    state = vit.state_dict()
    first = load_encoder(saved(state, "a/model.pth"), num_heads=3).source.content
    other = dict(state, **{"norm.weight": state["norm.weight"] + 1})
    assert load_encoder(saved(state, "b/last.pth"), num_heads=3).source.content == first
    assert load_encoder(saved(other, "c/model.pth"), num_heads=3).source.content != first


def test_digest_is_of_the_bytes_whatever_the_container(saved, vit, tmp_path):
    state = vit.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    views = {name: torch.cat([value.flatten(), torch.ones(3)]) for name, value in state.items()}
    strided = {
        name: views[name][: value.numel()].view(value.shape).t().contiguous().t()
        if value.ndim == 2
        else views[name][: value.numel()].view(value.shape)
        for name, value in state.items()
    }
    each = [
        zlib.crc32(raw).to_bytes(4, "little") + zlib.adler32(raw).to_bytes(4, "little")
        for raw in (state[name].numpy().tobytes() for name in sorted(state))
    ]
    expected = hashlib.sha256(b"".join(each)).hexdigest()
    for path in (tmp_path / "a.safetensors", tmp_path / "legacy.pth", saved(strided), saved(state, "b.pth")):
        assert load_encoder(path, num_heads=3).source.content == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_found_and_large_ones_are_not_taken_for_them(value):
    tensor = torch.full((1000,), 3e38)
    assert is_finite(tensor)
    tensor[500] = value
    assert not is_finite(tensor)


def test_nan_in_the_encoder_is_reported_and_elsewhere_is_not(saved, vit):
    state = vit.state_dict()
    content = dino(state)
    content["teacher"]["head.mlp.0.weight"] = torch.full((3, 192), float("nan"))
    assert load_encoder(saved(content)).non_finite == ()
    content["teacher"]["backbone.blocks.0.attn.qkv.weight"] = torch.full((576, 192), float("inf"))
    assert load_encoder(saved(content)).non_finite == ("blocks.0.attn.qkv.weight",)


def test_whole_pickled_module_is_read_without_being_imported(saved, vit):
    encoder = load_encoder(saved({"model": vit, "epoch": 2}))
    assert torch.equal(encoder.module.state_dict()["norm.weight"], vit.state_dict()["norm.weight"])
    assert load_encoder(saved(vit)).arch == encoder.arch
    heads = next(fact for fact in encoder.facts if fact.name == "heads")
    assert (heads.value, heads.source, heads.assumed) == ("3", "the module that was pickled whole", False)


def test_safetensors_load(tmp_path, vit):
    save_file(vit.state_dict(), tmp_path / "epoch_3.safetensors")
    encoder = load_encoder(tmp_path / "epoch_3.safetensors", num_heads=3)
    assert (encoder.source.layout, encoder.epoch) == ("plain", 3)


@pytest.mark.parametrize(
    ("fields", "name", "epoch", "step"),
    [
        ({"epoch": 11}, "checkpoint0010.pth", 11, None),
        ({"epoch": np.int64(11), "iteration": np.int64(500)}, "checkpoint.pth", 11, 500),
        ({}, "checkpoint0010.pth", 11, None),
        ({"epoch": True}, "model.pth", None, None),
        ({"epoch": -1}, "model.pth", None, None),
        ({"epoch": 3, "global_step": 700, "iteration": 5}, "model.pth", 3, 700),
        ({"epoch": 3, "num_updates": 70}, "model.pth", 3, 70),
        ({"optimizer": {"state": {i: {"step": torch.tensor(30.0 + i)} for i in (0, 1)}}}, "m.pth", None, 31),
        ({"optimizer": {"state": {0: {"step": 12}}}}, "m.pth", None, 12),
        ({"optimizer": {"state": {0: {"step": 12}}}, "epoch": 2}, "step_99.pth", 2, 12),
    ],
)  # fmt: skip
def test_progress_is_read_inside_before_the_name(saved, vit, fields, name, epoch, step):
    encoder = load_encoder(saved(dino(vit.state_dict(), **fields), name))
    assert (encoder.epoch, encoder.step) == (epoch, step)
    assert bool(encoder.source.epoch_source) == (epoch is not None)
    assert bool(encoder.source.step_source) == (step is not None)


def test_source_says_which_field_and_how_it_counts(saved, vit):
    source = load_encoder(saved(dino(vit.state_dict(), epoch=11), "checkpoint0010.pth")).source
    assert source.epoch_source == "field 'epoch' = 11 (counts finished ones)"


def test_disagreeing_name_is_noted_and_the_field_wins(saved, vit):
    encoder = load_encoder(saved(dino(vit.state_dict(), epoch=5), "checkpoint0010.pth"))
    assert encoder.epoch == 5
    assert any("name says 11" in note and "file says 5" in note for note in encoder.notes)


def test_lightning_counts_an_unfinished_epoch_as_not_done(saved, vit):
    progress = {"is_last_batch": False, "total": {"completed": 30}}
    content = {
        "state_dict": prefixed("backbone.", vit.state_dict()),
        "pytorch-lightning_version": "2.2",
        "epoch": 4,
        "global_step": 30,
        "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}},
    }
    assert load_encoder(saved(content), num_heads=3).epoch == 4
    progress["is_last_batch"] = True
    assert load_encoder(saved(content), num_heads=3).epoch == 5


def refusal(path, kind=UnknownLayout, **options):
    with pytest.raises(kind) as caught:
        load_encoder(path, **options)
    return str(caught.value)


def test_refusal_names_file_container_contents_and_what_helps(saved):
    message = refusal(saved({"net": {"a.weight": torch.zeros(3)}, "epoch": 3}, "odd.pth"))
    for part in (
        "odd.pth",
        "torch zip",
        "'net', 'epoch'",
        "'net/a.weight'",
        "Give the checkpoint of the whole network",
    ):
        assert part in message


def test_refusal_names_the_nearest_layout_and_what_it_misses(saved, vit):
    content = dino(vit.state_dict())
    content["teacher"] = {name.replace("patch_embed", "embed"): t for name, t in content["teacher"].items()}
    content["student"] = {}
    message = refusal(saved(content))
    assert "Nearest: 'dino'" in message
    assert "'blocks.0.norm1.weight' is there but 'patch_embed.proj.weight' is not" in message


def test_refusal_counts_missing_tensors_of_the_recognised_layout(saved, vit):
    content = dino(vit.state_dict())
    del content["teacher"]["backbone.blocks.0.mlp.fc2.bias"]
    message = refusal(saved(content))
    total = len(vit.state_dict())
    assert "layout 'dino'" in message
    assert f"1 of {total} backbone tensors missing (blocks.0.mlp.fc2.bias)" in message
    assert "--encoder" in message


def without(state, *parts):
    return {name: value for name, value in state.items() if not any(part in name for part in parts)}


def test_refusal_counts_what_half_an_encoder_lacks(saved, vit):
    half = prefixed("backbone.", without(vit.state_dict(), "patch_embed"))
    with pytest.raises(UnknownLayout) as refused:
        load_encoder(
            saved({"student": {}, "teacher": half, "dino_loss": {}, "epoch": 3}, "checkpoint0002.pth")
        )
    said = str(refused.value)
    for part in (
        "checkpoint0002.pth (torch zip): no encoder was recognised",
        "vision transformer, ResNet, Swin or ConvNeXt was expected",
        "Found top level 'student', 'teacher'",
        f"Nearest: 'dino' (1 of {len(half) + 1} backbone tensors missing: patch_embed.proj.weight)",
        "--layout NAME",
        "--encoder PREFIX",
    ):
        assert part in said


def test_refusal_counts_convolutions_that_a_residual_network_lacks(saved):
    import torchvision

    state = without(torchvision.models.resnet18().state_dict(), "fc.", "layer2.0.conv2", "layer3.1.bn1")
    content = {
        "model": {**prefixed("module.backbone.", state), "module.projector.0.weight": torch.zeros(2, 2)}
    }
    with pytest.raises(UnknownLayout) as refused:
        load_encoder(saved(content, "model_199.pth"))
    said = str(refused.value)
    assert "layout 'vicreg'" in said
    assert f"6 of {len(state) + 6} backbone tensors missing: layer2.0.conv2.weight, layer3.1.bn1.bias" in said
    assert "--arch" in said


def test_refusal_does_not_mistake_a_norm_for_a_stem(saved):
    import torchvision

    state = without(torchvision.models.resnet18().state_dict(), "fc.")
    del state["conv1.weight"]
    with pytest.raises(
        UnknownLayout, match=rf"\(1 of {len(state) + 1} backbone tensors missing: conv1\.weight\)"
    ):
        load_encoder(saved(state))


def test_averaged_weights_without_names_are_named_as_such(saved):
    with pytest.raises(UnknownLayout, match="'shadow_params' are averaged weights without names"):
        load_encoder(saved({"shadow_params": [torch.zeros(3)], "decay": 0.9}))


def test_file_without_tensors_is_refused(saved):
    assert "no tensors" in refusal(saved({"epoch": 3, "metrics": [1.0, 2.0]}))


def test_wrong_network_name_lists_the_right_ones(saved, vit):
    message = refusal(saved(dino(vit.state_dict())), encoder="momentum")
    assert "--encoder 'momentum' is not in it" in message
    assert "teacher, student" in message
    assert "'teacher/backbone.'" in message


def test_ambiguous_heads_name_file_layout_and_place(saved):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=4, num_classes=0)
    message = refusal(saved(dino(vit.state_dict()), "checkpoint0000.pth"), AmbiguousArchitecture)
    for part in ("checkpoint0000.pth", "'dino'", "teacher/backbone.", "width 24", "384: 6", "--num-heads"):
        assert part in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused_by_name(saved, vit, dtype):
    state = vit.state_dict()
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].to(dtype)
    wanted = rf"not floating-point numbers \(1 of them, such as blocks.0.mlp.fc1.weight: {str(dtype)[6:]}\)"
    with pytest.raises(UnknownLayout, match=wanted):
        load_encoder(saved(state), num_heads=3)


@pytest.mark.parametrize("epoch", [10**30, 1e300, math.nan, -1])
def test_a_stored_epoch_that_no_training_reaches_is_not_believed(saved, vit, epoch):
    encoder = load_encoder(saved({"model": vit.state_dict(), "epoch": epoch}), num_heads=3)
    assert encoder.epoch is None
