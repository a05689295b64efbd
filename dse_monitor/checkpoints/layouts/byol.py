"""Checkpoints of BYOL, as yaox12/BYOL-PyTorch writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="byol",
    title="BYOL",
    origin="yaox12/BYOL-PyTorch",
    example="resnet50_10.pth.tar",
    needs=("model/online_network.encoder.", "model/target_network.encoder."),
    networks=(
        NetworkAt("target", "model/module.target_network.encoder."),
        NetworkAt("online", "model/module.online_network.encoder."),
    ),
    evaluated="the paper reads the target network",
    dialects=("ResNet as a sequence",),
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=("Children of the encoder are numbered, not named: 0 is conv1, 1 is bn1, 4 to 7 are the stages",),
    official=True,
)
