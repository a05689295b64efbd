"""Checkpoints of DenseCL, as WXinlong/DenseCL writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="densecl",
    title="DenseCL",
    origin="WXinlong/DenseCL",
    example="epoch_10.pth",
    needs=("state_dict/backbone.", "state_dict/encoder_q.0.", "state_dict/encoder_k.0."),
    networks=(
        NetworkAt("backbone", "state_dict/backbone."),
        NetworkAt("encoder_q", "state_dict/encoder_q.0."),
        NetworkAt("encoder_k", "state_dict/encoder_k.0."),
    ),
    evaluated="the paper reads the query network, which the file holds twice: backbone is encoder_q.0",
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(
        "encoder_k is the momentum copy and gives other features",
        "latest.pth is a link to the newest",
    ),
    official=True,
)
