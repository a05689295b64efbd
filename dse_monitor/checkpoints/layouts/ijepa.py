"""Checkpoints of I-JEPA, as facebookresearch/ijepa writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.heads import IJEPA_VITS
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="ijepa",
    title="I-JEPA",
    origin="facebookresearch/ijepa",
    example="jepa-ep50.pth.tar",
    needs=("encoder", "predictor", "target_encoder", "encoder/patch_embed."),
    networks=(
        NetworkAt("encoder", "encoder/module."),
        NetworkAt("target_encoder", "target_encoder/module."),
    ),
    evaluated="the paper reads the context encoder; the I-JEPA authors evaluate target_encoder",
    heads_by_width=IJEPA_VITS,
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(
        "The number in the file name is one more than the finished epochs; the stored epoch is right",
        "There is no class token, and the final norm belongs to the tokens",
    ),
    official=True,
)
