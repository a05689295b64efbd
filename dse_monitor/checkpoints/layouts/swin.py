"""Checkpoints of Swin, SimMIM, as microsoft/Swin-Transformer writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="swin",
    title="Swin, SimMIM",
    origin="microsoft/Swin-Transformer",
    example="ckpt_epoch_100.pth",
    needs=("model", "optimizer", "lr_scheduler", "max_accuracy", "epoch"),
    networks=(NetworkAt("model", "model/"), NetworkAt("encoder", "model/encoder.")),
    evaluated="there is one encoder",
    epochs_from_field=1,
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=("The stored epoch counts from zero",),
)
