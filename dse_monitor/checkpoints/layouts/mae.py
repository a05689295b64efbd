"""Checkpoints of MAE, as facebookresearch/mae writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.heads import MAE_VITS
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="mae",
    title="MAE",
    origin="facebookresearch/mae",
    example="checkpoint-20.pth",
    needs=("model", "model/decoder_embed.", "model/patch_embed.", "model/mask_token"),
    networks=(NetworkAt("encoder", "model/"),),
    evaluated="the encoder, run on unmasked images",
    drop=("decoder_", "mask_token"),
    epochs_from_field=1,
    heads_by_width=MAE_VITS,
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(
        "The stored epoch counts from zero, unlike the DINO family's: one more epoch is finished",
        "The decoder shares the file and the naming, and is left out",
    ),
    official=True,
)
