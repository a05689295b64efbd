"""Checkpoints of EsViT, as microsoft/esvit writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import COUNTS_FROM_ZERO, TEACHER
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="esvit",
    title="EsViT",
    origin="microsoft/esvit",
    example="checkpoint0010.pth",
    needs=("student", "teacher", "dino_loss", "teacher/layers."),
    lacks=("teacher/backbone.",),
    networks=(NetworkAt("teacher", "teacher/"), NetworkAt("student", "student/module.")),
    evaluated=TEACHER,
    drop=("head.", "head_dense."),
    norm_eps=1e-6,
    details={"pad_first": True, "shift_as_built": True},
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(
        COUNTS_FROM_ZERO,
        "Teacher keys carry no prefix at all",
        "A stage ends with its merging layer; in timm the next stage begins with it",
        "LayerNorms use epsilon 1e-6 where timm's Swin uses 1e-5",
        "Grids that windows do not divide are filled up before they are shifted; timm shifts first",
    ),
    official=True,
)
