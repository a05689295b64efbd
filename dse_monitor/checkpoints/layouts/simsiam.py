"""Checkpoints of SimSiam, as facebookresearch/simsiam writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import COUNTS_FROM_ZERO
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="simsiam",
    title="SimSiam",
    origin="facebookresearch/simsiam",
    example="checkpoint_0010.pth.tar",
    needs=("state_dict/encoder.", "state_dict/encoder.fc.", "state_dict/predictor."),
    lacks=("state_dict/teacher.", "state_dict/momentum_encoder.", "state_dict/projector."),
    networks=(NetworkAt("encoder", "state_dict/module.encoder."),),
    evaluated="there is one encoder",
    drop=("fc.",),
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(COUNTS_FROM_ZERO,),
    official=True,
)
