"""Runs that real savers wrote several times an epoch, really watched: every file is a point."""

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.utils.checkpoint_saver import CheckpointSaver

from dse_monitor import scenes
from dse_monitor.runs import ledger
from dse_monitor.runs.series import Series

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"img_size": 32, "patch_size": 8, "depth": 2}  # of the network, as timm's train.py stores it


def network(seed):
    torch.manual_seed(seed)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=0)


def watched(folder):
    """What a watcher that was started on a folder found: its lines, the series and best.json."""
    scenes.write_folder(folder.parent / "images", count=16, size=32, seed=0)
    command = [sys.executable, "-m", "dse_monitor", "watch", str(folder), "--once", "--plain"]
    command += ["--images", str(folder.parent / "images"), "--num-images", "16", "--device", "cpu"]
    command += ["--num-heads", "3"]  # nothing in or beside the files says it
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((folder / "dse" / "best.json").read_text())
    return done.stdout, Series.from_evaluations(ledger.read(folder / "dse").evaluations), told


def test_ten_files_of_one_lightning_epoch_are_ten_points(tmp_path):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone = network(0)

        def training_step(self, batch, _):
            return (self.backbone(batch) ** 2).mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.randn(40, 3, 32, 32), batch_size=2)

    run = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(dirpath=run, every_n_train_steps=2, save_top_k=-1)],
        ).fit(Module())
    assert len(list(run.glob("*.ckpt"))) == 10
    said, series, told = watched(run)
    assert (series.axis, series.x.tolist()) == ("step", [2.0 * k for k in range(1, 11)])
    assert (series.counted, told["measured"]) == (10, 10)
    assert series.dse[series.best] == series.dse.max()
    assert "ordered by step" in said


def test_timms_recovery_files_stand_between_its_epochs(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    vit = network(0)
    saver = CheckpointSaver(
        model=vit,
        optimizer=torch.optim.SGD(vit.parameters(), lr=0.1),  # which counts no steps
        args=argparse.Namespace(model="vit_tiny_patch16_224", num_classes=0, model_kwargs=SIZE),
        checkpoint_dir=str(run),
        recovery_dir=str(run),
        max_history=10,
    )
    saver.max_history = 10
    written = []
    for epoch in range(3):
        for batch in (5, None):
            for parameter in vit.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
            if batch is None:
                saver.save_checkpoint(epoch, metric=float(epoch))
                name = f"checkpoint-{epoch}.pth.tar"
            else:
                saver.save_recovery(epoch, batch)
                name = f"recovery-{epoch}-{batch}.pth.tar"
                (run / name).rename(tmp_path / name)  # timm removes all but the newest two
            written.append(name)
    for name in written:
        if (tmp_path / name).exists():
            (tmp_path / name).rename(run / name)
    for k, name in enumerate(written):
        os.utime(run / name, (1.7e9 + 60 * k, 1.7e9 + 60 * k))
    _, series, told = watched(run)
    assert [e.source.path for e in series.evaluations] == written
    assert (series.axis, series.counted, told["measured"]) == ("order", 6, 6)
    assert not series.untrained.any()
