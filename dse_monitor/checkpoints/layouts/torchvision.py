"""Checkpoints of torchvision references, as pytorch/vision writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="torchvision",
    title="torchvision references",
    origin="pytorch/vision",
    example="model_89.pth",
    needs=("model", "optimizer", "lr_scheduler", "epoch", "args"),
    networks=(NetworkAt("ema", "model_ema/"), NetworkAt("model", "model/")),
    evaluated="the averaged weights where they are kept",
    epochs_from_field=1,
    heads_by_width={768: 12, 1024: 16, 1280: 16},
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=("The stored epoch counts from zero",),
)
