"""Vision networks of transformers, built by its own classes: its last hidden state, or a refusal."""

import importlib.util
import json

import pytest
import torch

from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.inspect import inspect_checkpoint
from dse_monitor.errors import UnknownLayout

transformers = pytest.importorskip("transformers")

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
       "image_size": 32, "patch_size": 8}  # fmt: skip
TEXT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
SWIN = {
    "image_size": 32,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
    "patch_size": 4,
}
CASES = {
    "CLIPVisionModel": (VIT, 1),
    "SiglipVisionModel": (VIT, 0),
    "BeitModel": ({**VIT, "use_relative_position_bias": True, "hidden_act": "quick_gelu"}, 1),
    "Swinv2Model": (SWIN, 0),
    "PvtV2Model": ({"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1, 2, 4, 4],
                    "mlp_ratios": [2] * 4}, 0),
}  # fmt: skip


def written(folder, kind, settings):
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def edit(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize("name", CASES)
def test_what_save_pretrained_writes_is_read_by_its_class(tmp_path, name):
    settings, prefix = CASES[name]
    model = written(tmp_path, getattr(transformers, name), settings)
    encoder = load_encoder(tmp_path, image_size=32)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images).last_hidden_state
    expected = expected[:, prefix:] if expected.ndim == 3 else expected.flatten(2).mT
    torch.testing.assert_close(encoder.dense_tokens(images), expected, rtol=1e-4, atol=1e-5)
    assert encoder.source.layout == "huggingface"


def test_the_vision_tower_of_a_pair_is_taken(tmp_path):
    model = written(tmp_path, transformers.CLIPModel, {"vision_config": VIT, "text_config": TEXT})
    encoder = load_encoder(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.vision_model(images).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder.dense_tokens(images), expected, rtol=1e-4, atol=1e-5)


def test_code_that_config_json_asks_for_is_not_run(tmp_path):
    written(tmp_path, transformers.SiglipVisionModel, VIT)
    edit(tmp_path, auto_map={"AutoModel": "evil--evil.Evil"}, attn_implementation="evil/kernel")
    assert any("auto_map" in note for note in inspect_checkpoint(tmp_path).notes)


def test_settings_that_are_not_those_of_the_tensors_are_refused(tmp_path):
    written(tmp_path, transformers.SiglipVisionModel, VIT)
    edit(tmp_path, hidden_size=32)
    with pytest.raises(UnknownLayout, match=r"SiglipVisionModel.*tensors have other shapes"):
        load_encoder(tmp_path)
    edit(tmp_path, hidden_size=24, num_hidden_layers=3)
    with pytest.raises(UnknownLayout, match=r"SiglipVisionModel.*are missing \(.*layers\.2"):
        load_encoder(tmp_path)
    edit(tmp_path, num_hidden_layers=10**9)
    with pytest.raises(UnknownLayout, match=r"num_hidden_layers is 1e\+09, beyond"):
        load_encoder(tmp_path)


def test_a_class_that_cannot_be_built_says_so_in_one_line(tmp_path):
    written(tmp_path, transformers.SiglipVisionModel, VIT)
    edit(tmp_path, hidden_act="no_such_activation")
    with pytest.raises(UnknownLayout, match="cannot be built") as refused:
        load_encoder(tmp_path)
    assert "\n" not in str(refused.value)


def test_networks_of_videos_are_refused_as_such(tmp_path):
    written(tmp_path, transformers.SiglipVisionModel, VIT)
    edit(tmp_path, model_type="videomae")
    with pytest.raises(UnknownLayout, match=r"'videomae', whose input is videos.*--network"):
        load_encoder(tmp_path)


def test_without_transformers_the_refusal_says_what_to_install(tmp_path, monkeypatch):
    written(tmp_path, transformers.SiglipVisionModel, VIT)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name)
    )
    with pytest.raises(UnknownLayout, match="pip install transformers"):
        load_encoder(tmp_path)


def test_what_a_library_keeps_for_the_whole_process_stays_whole(tmp_path):
    """BEiT computes its index of relative positions once per process: looking at a file must not spoil it."""
    model = written(tmp_path, transformers.BeitModel, {**VIT, "use_relative_position_bias": True})
    inspect_checkpoint(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first, second = model(images).last_hidden_state, model(images).last_hidden_state
    torch.testing.assert_close(first, second, rtol=0, atol=0)
