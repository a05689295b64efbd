"""Folders of Hugging Face transformers: the library's own tokens, recorded once and made anew where it is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dse_monitor.checkpoints import load_encoder
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


@pytest.mark.parametrize("model", MODELS)
def test_folder_saved_now_gives_the_models_tokens(tmp_path, model):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = getattr(transformers, f"{model}Config")(**MODELS[model])
    network = getattr(transformers, f"{model}Model")(settings).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    network.save_pretrained(tmp_path)
    side = MODELS[model]["image_size"]
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = last(network(images).last_hidden_state, (side // 8) ** 2)
    assert torch.allclose(load_encoder(tmp_path).dense_tokens(images), expected, atol=1e-4)


def test_another_activation_is_refused_and_named(tmp_path):
    vectors = torch.load(GOLDEN, weights_only=True)
    start = "ViT/param/"
    state = {name.removeprefix(start): value for name, value in vectors.items() if name.startswith(start)}
    save_file(state, tmp_path / "model.safetensors")
    settings = vectors["ViT/config"].replace('"hidden_act": "gelu"', '"hidden_act": "quick_gelu"')
    (tmp_path / "config.json").write_text(settings)
    with pytest.raises(UnknownLayout, match=r"hidden_act 'quick_gelu' where 'gelu' is built.*--arch"):
        load_encoder(tmp_path)
