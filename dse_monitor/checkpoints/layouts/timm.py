"""Checkpoints of timm, as huggingface/pytorch-image-models writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="timm",
    title="timm",
    origin="huggingface/pytorch-image-models",
    example="checkpoint-12.pth.tar",
    needs=("epoch", "arch", "state_dict", "version"),
    networks=(NetworkAt("ema", "state_dict_ema/"), NetworkAt("model", "state_dict/")),
    evaluated="the averaged weights where they are kept",
    epochs_from_field=1,
    traps=("The stored epoch counts from zero",),
)
