"""Checkpoints of MEC, as xinliu20/MEC writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import COUNTS_FROM_ZERO, ONLINE
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="mec",
    title="MEC",
    origin="xinliu20/MEC",
    example="checkpoint_0010.pth.tar",
    needs=("state_dict/encoder.", "state_dict/predictor.", "state_dict/teacher."),
    networks=(
        NetworkAt("encoder", "state_dict/module.encoder."),
        NetworkAt("teacher", "state_dict/module.teacher."),
    ),
    evaluated=ONLINE,
    drop=("fc.",),
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(COUNTS_FROM_ZERO,),
    official=True,
)
