"""Checkpoints of Barlow Twins, as facebookresearch/barlowtwins writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import BACKBONE_ONLY, OVERWRITTEN
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="barlowtwins",
    title="Barlow Twins",
    origin="facebookresearch/barlowtwins",
    example="checkpoint_10.pth",
    needs=("model/backbone.", "model/projector.", "model/bn.running_mean"),
    networks=(NetworkAt("backbone", "model/module.backbone."),),
    evaluated="there is one backbone",
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(OVERWRITTEN, BACKBONE_ONLY, "module.bn belongs to the loss, not to the stem"),
    official=True,
)
