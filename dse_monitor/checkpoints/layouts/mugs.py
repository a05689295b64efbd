"""Checkpoints of Mugs, as sail-sg/mugs writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.heads import IBOT_VITS
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import COUNTS_FROM_ZERO, TEACHER
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

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
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(COUNTS_FROM_ZERO, "relation_blocks look like blocks of the encoder and are none"),
    official=True,
)
