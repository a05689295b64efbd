"""Checkpoints of Mugs, as sail-sg/mugs writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.heads import IBOT_VITS
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import COUNTS_FROM_ZERO, TEACHER

LAYOUT = Layout(
    name="mugs",
    title="Mugs",
    origin="sail-sg/mugs",
    example="checkpoint0050.pth",
    needs=("student", "teacher", "instance-sup.", "group-sup.", "teacher/backbone."),
    networks=(
        NetworkAt("teacher", "teacher/backbone."),
        NetworkAt("student", "student/module.backbone."),
    ),
    evaluated=TEACHER,
    drop=("relation_blocks.",),
    heads_by_width=IBOT_VITS,
    traps=(COUNTS_FROM_ZERO, "relation_blocks look like blocks of the encoder and are none"),
    official=True,
)
