"""Checkpoints of MoCo v3, as facebookresearch/moco-v3 writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import COUNTS_FROM_ZERO
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="mocov3",
    title="MoCo v3",
    origin="facebookresearch/moco-v3",
    example="checkpoint_0010.pth.tar",
    needs=("state_dict/base_encoder.", "state_dict/momentum_encoder."),
    networks=(
        NetworkAt("momentum_encoder", "state_dict/module.momentum_encoder."),
        NetworkAt("base_encoder", "state_dict/module.base_encoder."),
    ),
    evaluated="the paper reads the momentum encoder; the authors' transfer scripts read base_encoder",
    drop=("head.", "fc."),
    heads_by_width={384: 12, 768: 12},
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(
        COUNTS_FROM_ZERO,
        "Its ViT-S has 12 heads, not 6: with 6 it loads without complaint and yields wrong features",
    ),
    official=True,
)
