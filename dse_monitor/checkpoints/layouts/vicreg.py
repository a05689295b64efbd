"""Checkpoints of VICReg, as facebookresearch/vicreg writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import BACKBONE_ONLY, OVERWRITTEN
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="vicreg",
    title="VICReg",
    origin="facebookresearch/vicreg",
    example="model_10.pth",
    needs=("model/backbone.", "model/projector."),
    lacks=("model/bn.running_mean", "model/maps_projector.", "model/classifier."),
    networks=(NetworkAt("backbone", "model/module.backbone."),),
    evaluated="there is one backbone",
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(OVERWRITTEN, BACKBONE_ONLY, "The optimiser holds pickled functions, which are not imported"),
    official=True,
)
