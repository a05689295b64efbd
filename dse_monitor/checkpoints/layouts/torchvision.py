"""Checkpoints of torchvision references, as pytorch/vision writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="torchvision",
    title="torchvision references",
    origin="pytorch/vision",
    example="model_89.pth",
    needs=("model", "optimizer", "lr_scheduler", "epoch", "args"),
    networks=(NetworkAt("ema", "model_ema/"), NetworkAt("model", "model/")),
    evaluated="the averaged weights where they are kept",
    epochs_from_field=1,
    traps=("The stored epoch counts from zero",),
)
