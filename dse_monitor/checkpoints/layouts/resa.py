"""Checkpoints of ReSA, as winci-ai/resa writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import OVERWRITTEN
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="resa",
    title="ReSA",
    origin="winci-ai/resa",
    example="checkpoint_0010.pth.tar",
    needs=(
        "state_dict/encoder.",
        "state_dict/projector.",
        "state_dict/momentum_encoder.",
        "state_dict/momentum_projector.",
    ),
    networks=(
        NetworkAt("encoder", "state_dict/module.encoder."),
        NetworkAt("momentum_encoder", "state_dict/module.momentum_encoder."),
    ),
    evaluated="the paper reads the online encoder; the authors evaluate momentum_encoder",
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(OVERWRITTEN,),
    official=True,
)
