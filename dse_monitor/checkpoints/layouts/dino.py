"""Checkpoints of DINO, as facebookresearch/dino writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.heads import DINO_VITS
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import COUNTS_FROM_ZERO, TEACHER
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="dino",
    title="DINO",
    origin="facebookresearch/dino",
    example="checkpoint0010.pth",
    needs=("student", "teacher", "dino_loss", "teacher/backbone."),
    networks=(
        NetworkAt("teacher", "teacher/backbone."),
        NetworkAt("student", "student/module.backbone."),
    ),
    evaluated=TEACHER,
    heads_by_width=DINO_VITS,
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(COUNTS_FROM_ZERO,),
    official=True,
)
