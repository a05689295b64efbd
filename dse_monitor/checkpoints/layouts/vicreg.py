"""Checkpoints of VICReg, as facebookresearch/vicreg writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import BACKBONE_ONLY, OVERWRITTEN

LAYOUT = Layout(
    name="vicreg",
    title="VICReg",
    origin="facebookresearch/vicreg",
    example="model_10.pth",
    needs=("model/backbone.", "model/projector."),
    lacks=("model/bn.running_mean", "model/maps_projector.", "model/classifier."),
    networks=(NetworkAt("backbone", "model/module.backbone."),),
    evaluated="there is one backbone",
    traps=(OVERWRITTEN, BACKBONE_ONLY, "The optimiser holds pickled functions, which are not imported"),
    official=True,
)
