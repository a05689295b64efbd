"""Checkpoints of iBOT, as bytedance/ibot writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.heads import IBOT_VITS
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.sentences import COUNTS_FROM_ZERO, TEACHER
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="ibot",
    title="iBOT",
    origin="bytedance/ibot",
    example="checkpoint0040.pth",
    needs=("student", "teacher", "ibot_loss", "teacher/backbone."),
    networks=(
        NetworkAt("teacher", "teacher/backbone."),
        NetworkAt("student", "student/module.backbone."),
    ),
    evaluated=TEACHER,
    drop=("masked_embed",),
    heads_by_width=IBOT_VITS,
    norm_eps=1e-6,  # its Swin too
    details={"pad_first": True, "shift_as_built": True},  # of its Swin
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=(COUNTS_FROM_ZERO, "There is no checkpoint0000.pth"),
    official=True,
)
