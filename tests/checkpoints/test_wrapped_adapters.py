"""LoRA as peft writes it: added as peft adds it where adapter_config.json says how, else refused by name."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from dse_monitor.checkpoints.archive import open_archive
from dse_monitor.checkpoints.families.statedicts import state_dicts
from dse_monitor.checkpoints.recognition import architecture
from dse_monitor.checkpoints.recognition.dialects import WrappedWeights
from dse_monitor.errors import CheckpointError

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 6,
    "use_rslora": False,
    "base_model_name_or_path": "base",
}
ADAPTED = ("attn.qkv", "mlp.fc2")


def network():
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=0
    ).eval()
    for parameter in vit.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return vit


def factors(vit, rank=4, only=ADAPTED):
    """Random A and B of every adapted module, by its name."""
    made = {}
    for name, module in vit.named_modules():
        if name.endswith(only):
            made[name] = (torch.randn(rank, module.in_features), torch.randn(module.out_features, rank))
    return made


def in_memory(vit, made, adapter="default"):
    """The state dict of a network with these adapters, in peft's names."""
    state = {}
    for name, tensor in vit.state_dict().items():
        module, _, rest = name.rpartition(".")
        state[
            f"base_model.model.{module}.base_layer.{rest}" if module in made else f"base_model.model.{name}"
        ] = tensor
    for module, (down, up) in made.items():
        state[f"base_model.model.{module}.lora_A.{adapter}.weight"] = down
        state[f"base_model.model.{module}.lora_B.{adapter}.weight"] = up
    return state


def read(path):
    """Names and tensors of the encoder in a file, made as the loader makes them, and what it is called."""
    archive = open_archive(path)
    (found,) = architecture.encoders(state_dicts(archive.tree, archive.sidecars.get("adapter_config.json")))
    pieces, refs = found.pieces(), found.references()
    names = list(dict.fromkeys(source for piece in pieces.values() for source in piece.sources))
    blobs = archive.read([refs[name] for name in names])
    stored = {
        name: torch.frombuffer(blob, dtype=torch.float32).view(refs[name].shape)
        for name, blob in zip(names, blobs, strict=True)
    }
    return found, {
        name: piece.make([stored[each] for each in piece.sources]) for name, piece in pieces.items()
    }


def beside(path, **changes):
    (path.parent / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    return path


def expected(vit, made, factor):
    state = dict(vit.state_dict())
    for module, (down, up) in made.items():
        state[f"{module}.weight"] = state[f"{module}.weight"] + up @ down * factor
    return state


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 6 / 4),
        ({"use_rslora": True}, 6 / math.sqrt(4)),
        ({"lora_alpha": 0.5}, 0.5 / 4),
        ({"r": 9, "rank_pattern": {"qkv": 4, "blocks.0.mlp.fc2": 4, "mlp.fc2": 4}}, 6 / 4),
        ({"alpha_pattern": {"attn.qkv": 8, r"^blocks\.\d\.mlp\.fc2$": 8}}, 8 / 4),
    ],
)
def test_lora_is_added_as_the_configuration_says(saved, changes, factor):
    vit = network()
    made = factors(vit)
    found, tensors = read(beside(saved(in_memory(vit, made)), **changes))
    assert found.computed() == ("LoRA (8)",)  # four weights, and four biases that only change their names
    wanted = expected(vit, made, factor)
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        assert torch.allclose(tensor, wanted[name], rtol=1e-6, atol=1e-6), name


def test_alpha_of_one_module_is_its_own(saved):
    vit = network()
    made = factors(vit)
    _, tensors = read(beside(saved(in_memory(vit, made)), alpha_pattern={"blocks.1.attn.qkv": 40}))
    for block, factor in ((0, 6 / 4), (1, 10)):
        name = f"blocks.{block}.attn.qkv"
        wanted = vit.state_dict()[f"{name}.weight"] + made[name][1] @ made[name][0] * factor
        assert torch.allclose(tensors[f"{name}.weight"], wanted, rtol=1e-5, atol=1e-5)


def test_without_configuration_it_is_refused(saved):
    vit = network()
    with pytest.raises(WrappedWeights, match=r"scaling .* a state dict does not hold") as caught:
        read(saved(in_memory(vit, factors(vit))))
    assert "merge_and_unload" in caught.value.advice


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"r": 8}, "says rank 8 for blocks.0.attn.qkv, its lora_A has 4"),
        ({"r": 0}, "no positive numbers"),
        ({"r": 10**400}, "no positive numbers"),
        ({"lora_alpha": float("nan")}, "no positive numbers"),
        ({"lora_alpha": True}, "no positive numbers"),
        ({"lora_alpha": -1}, "no positive numbers"),
        ({"rank_pattern": {"(a+)+$": 4}}, "no plain module name"),
        ({"alpha_pattern": {"a": "b"}}, "no plain module name"),
        ({"alpha_pattern": {str(number): 1 for number in range(1000)}}, "no plain module name"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"some_new_trick": 1}, "some_new_trick"),
    ],
)
def test_configuration_that_cannot_be_followed_is_refused(saved, changes, said):
    vit = network()
    with pytest.raises(WrappedWeights, match=said):
        read(beside(saved(in_memory(vit, factors(vit))), **changes))


def test_configuration_that_is_no_object_is_none(saved):
    path = saved(in_memory(network(), factors(network())))
    (path.parent / "adapter_config.json").write_text("[1, 2]")
    with pytest.raises(WrappedWeights, match="no usable adapter_config"):
        read(path)


@pytest.mark.parametrize(
    ("rest", "shape", "said"),
    [
        ("lora_magnitude_vector.default.weight", (576,), "DoRA"),
        ("hada_w1_a.default", (4, 4), "not computed here"),
        ("lora_A.second.weight", (4, 192), "2 adapters .*default, second"),
    ],
)
def test_what_else_lies_in_an_adapted_module_is_refused(saved, rest, shape, said):
    vit = network()
    state = in_memory(vit, factors(vit)) | {f"base_model.model.blocks.0.attn.qkv.{rest}": torch.zeros(shape)}
    with pytest.raises(WrappedWeights, match=said):
        read(beside(saved(state)))


@pytest.mark.parametrize(
    ("down", "up"), [((4, 5), (576, 4)), ((4, 192), (4, 576)), ((4,), (576, 4)), ((), ())]
)
def test_factors_that_do_not_fit_are_refused(saved, down, up):
    state = in_memory(network(), {"blocks.0.attn.qkv": (torch.zeros(down), torch.zeros(up))})
    with pytest.raises(WrappedWeights, match="do not fit"):
        read(beside(saved(state)))


def test_convolution_is_added_to_as_a_convolution(saved):
    vit = network()
    down, up = torch.randn(4, 3, 8, 8), torch.randn(192, 4, 1, 1)
    _, tensors = read(beside(saved(in_memory(vit, {"patch_embed.proj": (down, up)}))))
    added = torch.nn.functional.conv2d(down.transpose(0, 1), up).transpose(
        0, 1
    )  # one after the other, as peft does
    wanted = vit.patch_embed.proj.weight + added * 1.5
    assert torch.allclose(tensors["patch_embed.proj.weight"], wanted, rtol=1e-5, atol=1e-5)


def test_module_retrained_as_a_whole_replaces_the_original(saved):
    vit = network()
    state = in_memory(vit, factors(vit))
    for part in ("weight", "bias"):
        state[f"base_model.model.norm.original_module.{part}"] = state.pop(f"base_model.model.norm.{part}")
        state[f"base_model.model.norm.modules_to_save.default.{part}"] = torch.full((192,), 7.0)
    _, tensors = read(beside(saved(state)))
    assert torch.equal(tensors["norm.bias"], torch.full((192,), 7.0))


def test_lora_beside_a_weight_of_another_library_is_refused(saved):
    state = network().state_dict() | {"blocks.0.attn.qkv.lora_A": torch.zeros(4, 192)}
    with pytest.raises(WrappedWeights, match="already added"):
        read(saved(state))


# An adapter's own folder


def adapter_folder(tmp_path, vit, made, base_names=lambda name: name, **changes):
    """A peft folder, and the network it belongs to in a Hugging Face folder."""
    base, folder = tmp_path / "base", tmp_path / "adapter" / "checkpoint-7"
    base.mkdir()
    folder.mkdir(parents=True)
    save_file(
        {base_names(name): tensor for name, tensor in vit.state_dict().items()}, base / "model.safetensors"
    )
    state = {}
    for module, (down, up) in made.items():
        (
            state[f"base_model.model.{module}.lora_A.weight"],
            state[f"base_model.model.{module}.lora_B.weight"],
        ) = down, up
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(CONFIG | {"base_model_name_or_path": str(base)} | changes)
    )
    return folder


@pytest.mark.parametrize(
    "base_names", [str, "vit.{}".format], ids=["same names", "one more name in the file"]
)
@pytest.mark.parametrize("given", ["", "adapter_model.safetensors"])
def test_adapter_is_joined_with_its_network(tmp_path, base_names, given):
    vit = network()
    made = factors(vit)
    folder = adapter_folder(tmp_path, vit, made, base_names)
    archive = open_archive(folder / given)
    assert archive.container == "peft adapter (safetensors) on Hugging Face folder (safetensors)"
    assert any(str(tmp_path / "base") in note for note in archive.notes)
    _, tensors = read(folder / given)
    wanted = expected(vit, made, 1.5)
    assert tensors.keys() == wanted.keys()
    assert all(torch.allclose(tensors[name], wanted[name], rtol=1e-6, atol=1e-6) for name in wanted)


def test_network_may_lie_beside_the_adapter(tmp_path):
    vit = network()
    folder = adapter_folder(tmp_path, vit, factors(vit), base_model_name_or_path="../../base")
    assert read(folder)[0].dialect.name == "timm ViT"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"base_model_name_or_path": "facebook/dinov2-base"},
            "'facebook/dinov2-base', is no folder .*merge_and_unload",
        ),
        ({"base_model_name_or_path": None}, "names no network"),
        ({"base_model_name_or_path": "../checkpoint-7"}, "is no folder"),  # the adapter's own
        ({"base_model_name_or_path": "a\0b"}, "names no network"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16.* changed the network"),
        ({"init_lora_weights": ["pissa"]}, "changed the network"),
    ],
)
def test_adapter_without_its_network_is_refused(tmp_path, changes, said):
    vit = network()
    with pytest.raises(CheckpointError, match=said):
        open_archive(adapter_folder(tmp_path, vit, factors(vit), **changes))


def test_adapter_of_another_network_is_refused(tmp_path):
    vit = network()
    made = {f"encoder.{name}.deep": pair for name, pair in factors(vit).items()}
    with pytest.raises(CheckpointError, match=r"for modules .*encoder.* does not name so"):
        open_archive(adapter_folder(tmp_path, vit, made))


# peft itself


def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft takes a bias of lora_B for a shard
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"blocks.0.attn.qkv": 2}, "alpha_pattern": {"mlp.fc2": 20}},
        {"bias": "all"},
        {"modules_to_save": ["norm"]},
        {"target_modules": ["qkv", "patch_embed.proj"]},
        {"target_modules": ["qkv"], "lora_bias": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["state dict", "adapter folder"])
def test_peft_writes_what_is_read(tmp_path, saved, options, form):
    library = peft()
    vit = network()
    base = tmp_path / "base"
    base.mkdir()
    save_file(vit.state_dict(), base / "model.safetensors")
    config = library.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["qkv", "fc2"]} | options)
    vit.name_or_path = str(base)  # as transformers' models have it
    model = library.get_peft_model(vit, config).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
        assert parameter.requires_grad or "lora_" not in name
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    path = tmp_path / "saved"
    if form == "state dict":
        path = saved(model.state_dict(), "saved/full.pth")
    _, tensors = read(path)
    with torch.no_grad():
        wanted = model.base_model.model.forward_features(IMAGES)
        again = network()
        again.load_state_dict(tensors)
        assert torch.allclose(again.forward_features(IMAGES), wanted, atol=2e-5)
        merged = model.merge_and_unload()
    for name, tensor in merged.state_dict().items():
        assert torch.allclose(tensors[name], tensor, rtol=1e-5, atol=1e-6), name
