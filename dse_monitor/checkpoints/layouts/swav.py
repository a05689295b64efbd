"""Checkpoints of SwAV, as facebookresearch/swav writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import COUNTS_FROM_ZERO
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, SWAV_STD

LAYOUT = Layout(
    name="swav",
    title="SwAV",
    origin="facebookresearch/swav",
    example="ckp-25.pth",
    needs=("state_dict/conv1.weight", "state_dict/projection_head.", "state_dict/prototypes."),
    networks=(NetworkAt("encoder", "state_dict/module."),),
    evaluated="there is one encoder",
    drop=("projection_head.", "prototypes."),
    defines=True,
    mean=IMAGENET_MEAN,
    std=SWAV_STD,
    traps=(COUNTS_FROM_ZERO, "queue0.pth and mb0.pth beside it are no checkpoints"),
    official=True,
)
