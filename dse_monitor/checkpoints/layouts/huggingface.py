"""Checkpoints of Hugging Face transformers, as huggingface/transformers writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout
from dse_monitor.checkpoints.layouts.plain import ANYWHERE
from dse_monitor.checkpoints.recognition.dialects import DIALECTS, TRANSFORMERS

LAYOUT = Layout(
    name="huggingface",
    title="Hugging Face transformers",
    origin="huggingface/transformers",
    example="checkpoint-500",
    needs=(),
    networks=ANYWHERE,
    evaluated="the encoder; config.json beside the file is believed",
    dialects=(*(each.name for each in DIALECTS if each.name.startswith("Hugging Face")), TRANSFORMERS),
    traps=("ViT uses LayerNorm epsilon 1e-12, DINOv3 1e-5",),
)
