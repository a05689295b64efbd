"""Checkpoints of pengzhiliang/MAE-pytorch, whose encoder adds a table of sinusoids that files do not hold."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="mae-pytorch",
    title="MAE-pytorch",
    origin="pengzhiliang/MAE-pytorch",
    example="checkpoint-399.pth",
    needs=(
        "model/encoder.patch_embed.",
        "model/encoder.blocks.",
        "model/encoder_to_decoder.",
        "model/mask_token",
    ),
    lacks=("model/encoder.pos_embed", "model/encoder.cls_token"),
    networks=(NetworkAt("encoder", "model/encoder."),),
    evaluated="the decoder is dropped after pre-training",
    heads_by_width={384: 6, 768: 12, 1024: 16},
    epochs_from_field=1,
    details={"positions": "sinusoid"},
    traps=(
        "The file holds no positions: they are sinusoids over the patches of 224-pixel images, made anew",
    ),
)
