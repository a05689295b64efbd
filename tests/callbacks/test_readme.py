"""The README's lines for other people's training loops, run as they are written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*The number of training batches:UserWarning",
    "ignore:The `srun` command is available:UserWarning",  # a machine with Slurm
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)

README = Path(__file__).parents[2] / "README.md"
VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2, "num_classes": 0}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def snippet(word: str) -> str:
    """The one block of Python in the README that has this word."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    (found,) = [block for block in blocks if word in block]
    return found


def test_term_in_a_loop_of_ones_own(images):
    network = timm.create_model("vit_tiny_patch16_224", **VIT)
    patch_tokens = network.forward_features(images)[:, 1:]
    names: dict[str, Any] = {"patch_tokens": patch_tokens, "ssl_loss": patch_tokens.square().mean()}
    exec(snippet("ssl_loss"), names)
    names["loss"].backward()
    term = float((names["loss"] - names["ssl_loss"]).detach())
    assert term == pytest.approx(-1e-3 * float(names["regularizer"].last.dse), rel=1e-3)
    assert network.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_callback_in_lightning(images, tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)  # its trainer logs where it is started
    logged: list[tuple[int, dict[str, float]]] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model("vit_tiny_patch16_224", **VIT)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.backbone(batch[0]).square().mean()

        def on_train_epoch_end(self) -> None:  # callbacks have had their turn
            found = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith("dse/")}
            logged.append((self.current_epoch, found))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    names = {"lightning": lightning, "held_out_loader": DataLoader(TensorDataset(images), batch_size=8)}
    exec(snippet("lightning.Trainer"), names)
    trainer = names["trainer"]
    trainer.fit_loop.max_epochs = 6
    trainer.fit(Module(), DataLoader(TensorDataset(images), batch_size=8))
    assert trainer.current_epoch == 6
    assert set(trainer.callback_metrics) >= {"dse/dse", "dse/separability", "dse/m_dim"}
    assert logged[3][1] == {}  # not before the fifth epoch
    assert logged[5][1]["dse/dse"] == pytest.approx(float(trainer.callback_metrics["dse/dse"]))


class Pairs(Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": index % 2}


def test_callback_in_the_trainer_of_hugging_face(images, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=2,
    )
    model: nn.Module = transformers.ViTForImageClassification(config)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=6,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Pairs(images))
    names: dict[str, Any] = {"trainer": trainer, "held_out_images": Pairs(images)}
    exec(snippet("trainer.add_callback"), names)
    trainer.train()
    assert [row["epoch"] for row in trainer.state.log_history if "dse/dse" in row] == [5]
