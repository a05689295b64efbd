"""Folders of Hugging Face transformers: the library's own tokens, recorded once and made anew where it is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.inspect import inspect_checkpoint
from dse_monitor.errors import UnknownLayout

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "huggingface.pt"
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
MODELS = {
    "ViT": {**VIT, "intermediate_size": 96},
    "DeiT": {**VIT, "intermediate_size": 96},
    "Dinov2": {**VIT, "use_swiglu_ffn": True},
    "Dinov2WithRegisters": {**VIT, "num_register_tokens": 4},
    "DINOv3ViT": {
        **VIT,
        "hidden_size": 32,
        "intermediate_size": 64,
        "use_gated_mlp": True,
        "hidden_act": "silu",
    },
    "ConvNext": CONVNEXT,
    "ConvNextV2": CONVNEXT,
    "IJepa": {**VIT, "intermediate_size": 96},
}

# Compared with the library only where it is.
MORE = {
    "ViTMSN": MODELS["ViT"],
    "DINOv3ConvNext": CONVNEXT,
    "Swin": {"image_size": 64, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 3},
    "ResNet": {
        "embedding_size": 24,
        "hidden_sizes": [32, 48, 64, 96],
        "depths": [1, 2, 1, 1],
        "image_size": 64,
    },
}


def last(hidden, patches):
    """Dense tokens of a last hidden state: a map's positions, or what follows the prefix tokens."""
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden[:, -patches:]


@pytest.mark.parametrize("model", MODELS)
def test_recorded_folder_gives_the_recorded_tokens(tmp_path, model):
    vectors = torch.load(GOLDEN, weights_only=True)
    start = f"{model}/param/"
    state = {name.removeprefix(start): value for name, value in vectors.items() if name.startswith(start)}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(vectors[f"{model}/config"])
    encoder = load_encoder(tmp_path)
    assert encoder.source.layout == "huggingface"
    tokens = encoder.dense_tokens(vectors[f"{model}/images"])
    assert torch.allclose(tokens, vectors[f"{model}/tokens"], atol=1e-4)


@pytest.fixture
def made(request):
    """A network of the library with weights that are not the initial ones, images, and its dense tokens."""
    transformers = pytest.importorskip("transformers")
    model = request.param
    settings = {**MODELS, **MORE}[model]
    torch.manual_seed(0)
    configuration = getattr(transformers, f"{model}Config")(**settings)
    network = getattr(transformers, f"{model}Model")(configuration).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    images = torch.randn(2, 3, settings["image_size"], settings["image_size"])
    with torch.no_grad():
        hidden = network(images).last_hidden_state
    if model == "DINOv3ConvNext":  # begins with the pooled one
        return network, images, hidden[:, 1:]
    return network, images, hidden if model == "Swin" else last(hidden, (settings["image_size"] // 8) ** 2)


@pytest.mark.parametrize("made", [*MODELS, *MORE], indirect=True)
def test_folder_saved_now_gives_the_models_tokens(tmp_path, made):
    network, images, expected = made
    network.save_pretrained(tmp_path)
    assert torch.allclose(load_encoder(tmp_path).dense_tokens(images), expected, atol=1e-4)


@pytest.mark.parametrize("made", [*MODELS, *MORE], indirect=True)
def test_names_in_memory_are_understood_too(saved, made):
    network, images, expected = made
    state = {f"model.net.{name}": value for name, value in network.state_dict().items()}
    heads = getattr(network.config, "num_attention_heads", None)
    encoder = load_encoder(saved({"state_dict": state}, "model.pth"), num_heads=heads)
    assert encoder.source.layout == "huggingface"
    assert torch.allclose(encoder.dense_tokens(images), expected, atol=1e-4)


@pytest.mark.parametrize("made", ["ViT", "ConvNext"], indirect=True)
def test_folder_of_many_shards_is_read(tmp_path, made):
    network, images, expected = made
    network.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    assert inspect_checkpoint(tmp_path).container == "Hugging Face folder (sharded safetensors)"
    assert torch.allclose(load_encoder(tmp_path).dense_tokens(images), expected, atol=1e-4)


@pytest.mark.parametrize("key", ["downsample_in_first_stage", "downsample_in_bottleneck"])
def test_strides_elsewhere_are_refused(tmp_path, key):
    transformers = pytest.importorskip("transformers")
    settings = transformers.ResNetConfig(**MORE["ResNet"] | {key: True})
    transformers.ResNetModel(settings).save_pretrained(tmp_path)
    with pytest.raises(UnknownLayout, match=rf"sets {key}"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"])
def test_activation_of_the_configuration_is_built(tmp_path, activation):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = transformers.ViTConfig(**MODELS["ViT"] | {"hidden_act": activation})
    network = transformers.ViTModel(settings).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    network.save_pretrained(tmp_path)
    images = torch.randn(2, 3, settings.image_size, settings.image_size)
    with torch.no_grad():
        expected = network(images).last_hidden_state[:, 1:]
    encoder = load_encoder(tmp_path)
    assert torch.allclose(encoder.dense_tokens(images), expected, atol=1e-5)
    fact = next(fact for fact in encoder.facts if fact.name == "activation")
    assert (fact.source, fact.assumed, fact.usual) == ("hidden_act in config.json", False, False)


def test_an_unknown_activation_is_refused_and_named(tmp_path):
    vectors = torch.load(GOLDEN, weights_only=True)
    start = "ViT/param/"
    state = {name.removeprefix(start): value for name, value in vectors.items() if name.startswith(start)}
    save_file(state, tmp_path / "model.safetensors")
    settings = vectors["ViT/config"].replace('"hidden_act": "gelu"', '"hidden_act": "mish"')
    (tmp_path / "config.json").write_text(settings)
    with pytest.raises(
        UnknownLayout, match=r"hidden_act in config\.json asks for the activation 'mish'.*--arch"
    ):
        load_encoder(tmp_path)
