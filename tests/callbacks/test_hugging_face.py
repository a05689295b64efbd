"""The callback of Hugging Face's Trainer, in that Trainer, on networks of that library."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import nn

from dse_monitor.callbacks.inline import InlineDSE, dense_tokens

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SMALL |= {"image_size": 32, "patch_size": 8}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("ViT", SMALL, (16, 24)),
        ("DeiT", SMALL, (16, 24)),  # a class and a distillation token
        ("Dinov2WithRegisters", {**SMALL, "num_register_tokens": 4}, (16, 24)),
        (
            "Swin",
            {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
            (16, 16),
        ),
        ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, (16, 16)),
    ],
)
def test_tokens_of_vision_models_are_found(name, options, shape, transformers, images):
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        assert dense_tokens(model, images[:2]).shape == (2, *shape)


def test_tokens_are_the_last_hidden_state_without_leading_tokens(transformers, images):
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL)).eval()
    with torch.no_grad():
        hidden = model.vit(pixel_values=images).last_hidden_state
        assert torch.equal(dense_tokens(model, images), hidden[:, 1:])


def test_masked_autoencoder_is_refused_with_advice(transformers, images):
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL, **decoder)).eval()
    with torch.no_grad(), pytest.raises(ValueError, match=r"5 tokens do not fit 32 x 32 pixels.*tokens="):
        dense_tokens(model, images)


class Images(torch.utils.data.Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": index % 2}


def run(transformers: Any, images: torch.Tensor, folder: Any, inline: InlineDSE | None) -> Any:
    """Three epochs of a ViT with dropout -> the trainer."""
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, num_labels=2, hidden_dropout_prob=0.2)
    model: nn.Module = transformers.ViTForImageClassification(config)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=8,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Images(images))
    if inline:
        from dse_monitor.callbacks.hugging_face import DSECallback

        trainer.add_callback(DSECallback(trainer, inline))
    trainer.train()
    return trainer


def test_training_is_bit_for_bit_the_same_with_the_callback(transformers, images, tmp_path):
    without = run(transformers, images, tmp_path, None).model.state_dict()
    measured = run(transformers, images, tmp_path, InlineDSE(images=Images(images))).model.state_dict()
    assert all(torch.equal(measured[name], value) for name, value in without.items())


def test_numbers_reach_the_log_after_the_epochs_asked_for(transformers, images, tmp_path):
    trainer = run(transformers, images, tmp_path, InlineDSE(images=images, every=2))
    rows = [row for row in trainer.state.log_history if "dse/dse" in row]
    assert [row["epoch"] for row in rows] == [2]
    assert {"dse/separability", "dse/m_inter", "dse/m_intra", "dse/m_dim"} <= rows[0].keys()


def test_wrong_submodule_ends_the_run_before_its_first_step(transformers, images, tmp_path):
    with pytest.raises(ValueError, match="no submodule 'encoder'; it has vit, classifier"):
        run(transformers, images, tmp_path, InlineDSE(images=images, encoder="encoder"))


def test_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "dse_monitor.callbacks.hugging_face", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'dse-monitor\[transformers\]'"):
        importlib.import_module("dse_monitor.callbacks.hugging_face")
