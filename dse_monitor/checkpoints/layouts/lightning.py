"""Checkpoints of Lightning modules of any origin, as Lightning-AI/pytorch-lightning writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout
from dse_monitor.checkpoints.layouts.plain import ANYWHERE

LAYOUT = Layout(
    name="lightning",
    title="Lightning modules (lightly and others)",
    origin="Lightning-AI/pytorch-lightning",
    example="epoch=9-step=1250.ckpt",
    needs=("state_dict", "pytorch-lightning_version"),
    networks=ANYWHERE,
    evaluated="a teacher or averaged copy where there is one, else the online network",
    epochs_from_field=1,
    traps=("The stored epoch counts from zero",),
)
