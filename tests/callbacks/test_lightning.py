"""The Lightning callback in Lightning's own Trainer, under both names of the package."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dse_monitor.callbacks.inline import InlineDSE

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*The number of training batches:UserWarning",
    "ignore:The `srun` command is available:UserWarning",  # a machine with Slurm
    "ignore::DeprecationWarning",  # Lightning's own
    "ignore::FutureWarning",
)

VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2, "num_classes": 0}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request) -> Any:
    pytest.importorskip("lightning.pytorch")
    return pytest.importorskip(request.param)


def run(
    lightning: Any, images: torch.Tensor, folder: Any, callbacks: list[Any], *, validated: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Three epochs of a ViT with dropout on shuffled images -> the trainer, the weights at the end."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model("vit_tiny_patch16_224", proj_drop_rate=0.2, **VIT)
            self.norm = nn.BatchNorm1d(24)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.norm(self.backbone(batch[0])).square().mean() + self.backbone(batch[0]).sum() / 100

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Validated(Module):
        def validation_step(self, batch: Any, index: int) -> None:
            self.log("spread", self.backbone(batch[0]).std())

    torch.manual_seed(0)
    module = Validated() if validated else Module()
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=lightning.loggers.CSVLogger(folder),
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(c, lightning.callbacks.ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=folder,
    )
    training = DataLoader(TensorDataset(images), batch_size=8, shuffle=True)
    trainer.fit(module, training, DataLoader(TensorDataset(images), batch_size=8) if validated else None)
    return trainer, {name: value.clone() for name, value in module.state_dict().items()}


def callback(images: torch.Tensor, **options: Any) -> Any:
    from dse_monitor.callbacks.lightning import DSECallback

    return DSECallback(InlineDSE(images=images, encoder="backbone", **options))


def test_training_is_bit_for_bit_the_same_with_the_callback(lightning, images, tmp_path):
    _, without = run(lightning, images, tmp_path, [])
    held_out = DataLoader(TensorDataset(images), batch_size=8, shuffle=True)
    _, measured = run(lightning, images, tmp_path, [callback(held_out)])
    assert all(torch.equal(measured[name], value) for name, value in without.items())


def test_numbers_reach_the_loggers_after_the_epochs_asked_for(lightning, images, tmp_path):
    trainer, _ = run(lightning, images, tmp_path, [callback(images, every=2)])
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["dse/dse"]]
    assert [row["epoch"] for row in rows] == ["1"]  # the second of three
    assert all(rows[0][f"dse/{name}"] for name in ("separability", "m_inter", "m_intra", "m_dim"))


def test_checkpoints_can_follow_dse(images, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    keep = lightning.callbacks.ModelCheckpoint(tmp_path / "best", monitor="dse/dse", mode="max")
    run(lightning, images, tmp_path, [keep, callback(images)])
    assert keep.best_model_score is not None
    assert torch.isfinite(keep.best_model_score)


def test_checkpoints_can_follow_dse_in_its_rhythm_beside_a_validation(images, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    rhythm = {"every_n_epochs": 2, "save_on_train_epoch_end": True}
    keep = lightning.callbacks.ModelCheckpoint(tmp_path / "best", monitor="dse/dse", mode="max", **rhythm)
    run(lightning, images, tmp_path, [keep, callback(images, every=2)], validated=True)
    assert torch.isfinite(keep.best_model_score)
    assert "epoch=1" in keep.best_model_path


def test_wrong_submodule_ends_the_run_before_its_first_step(images, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from dse_monitor.callbacks.lightning import DSECallback

    with pytest.raises(ValueError, match="no submodule 'encoder'; it has backbone, norm"):
        run(lightning, images, tmp_path, [DSECallback(InlineDSE(images=images, encoder="encoder"))])


def test_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "dse_monitor.callbacks.lightning", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'dse-monitor\[lightning\]'"):
        importlib.import_module("dse_monitor.callbacks.lightning")
