"""Checkpoints of VICRegL, as facebookresearch/VICRegL writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import OVERWRITTEN
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, SWAV_STD

LAYOUT = Layout(
    name="vicregl",
    title="VICRegL",
    origin="facebookresearch/VICRegL",
    example="model_10.pth",
    needs=("model/backbone.", "model/classifier."),
    lacks=("model/bn.running_mean",),
    networks=(NetworkAt("backbone", "model/module.backbone."),),
    evaluated="there is one backbone",
    defines=True,
    mean=IMAGENET_MEAN,
    std=SWAV_STD,
    traps=(
        OVERWRITTEN,
        "The classifier beside the backbone is a probe trained along, not its last layer",
        "Its ConvNeXt norms every position before pooling, others norm the pooled vector",
    ),
    details={"norm_before_pooling": True},
    official=True,
)
