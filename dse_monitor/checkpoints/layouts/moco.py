"""Checkpoints of MoCo v1 and v2, as facebookresearch/moco writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import COUNTS_FROM_ZERO
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="moco",
    title="MoCo v1 and v2",
    origin="facebookresearch/moco",
    example="checkpoint_0199.pth.tar",
    needs=("state_dict/encoder_q.", "state_dict/encoder_k.", "state_dict/queue"),
    lacks=("state_dict/backbone.",),
    networks=(
        NetworkAt("encoder_q", "state_dict/module.encoder_q."),
        NetworkAt("encoder_k", "state_dict/module.encoder_k."),
    ),
    evaluated="the authors' transfer scripts read the query encoder",
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(COUNTS_FROM_ZERO,),
)
