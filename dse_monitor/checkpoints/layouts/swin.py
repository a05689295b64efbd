"""Checkpoints of Swin, SimMIM, as microsoft/Swin-Transformer writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="swin",
    title="Swin, SimMIM",
    origin="microsoft/Swin-Transformer",
    example="ckpt_epoch_100.pth",
    needs=("model", "optimizer", "lr_scheduler", "max_accuracy", "epoch"),
    networks=(NetworkAt("model", "model/"), NetworkAt("encoder", "model/encoder.")),
    evaluated="there is one encoder",
    epochs_from_field=1,
    traps=("The stored epoch counts from zero",),
)
