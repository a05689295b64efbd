"""The Lightning callback, unchanged, under a module of stable-pretraining; runs where that is installed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.utils.data import DataLoader, Dataset

from dse_monitor.callbacks.inline import InlineDSE

pytestmark = pytest.mark.filterwarnings("ignore")  # that package's and Lightning's own

VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2, "num_classes": 0}


class Pictures(Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": index % 2}


def test_modules_of_stable_pretraining_are_measured(tmp_path):
    spt, lightning = pytest.importorskip("stable_pretraining"), pytest.importorskip("lightning")
    from dse_monitor.callbacks.lightning import DSECallback

    def forward(self: Any, batch: Any, stage: str) -> dict[str, torch.Tensor]:
        return {"loss": self.backbone(batch["image"]).square().mean()}

    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    module = spt.Module(
        backbone=timm.create_model("vit_tiny_patch16_224", **VIT),
        forward=forward,
        optim={"optimizer": {"type": "SGD", "lr": 0.1}, "scheduler": "ConstantLR", "interval": "step"},
    )
    loader = DataLoader(Pictures(images), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=lightning.pytorch.loggers.CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[DSECallback(InlineDSE(images=loader, encoder="backbone"))],
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader)
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("dse/dse")]
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert rows[0]["dse/dse"] != rows[1]["dse/dse"]
