"""Checkpoints of DINOv2, as facebookresearch/dinov2 writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.heads import DINOV2_VITS
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD

LAYOUT = Layout(
    name="dinov2",
    title="DINOv2",
    origin="facebookresearch/dinov2",
    example="eval/training_1249/teacher_checkpoint.pth",
    needs=(),
    networks=(
        NetworkAt("teacher", "teacher/backbone."),
        NetworkAt("teacher", "model/teacher.backbone."),
        NetworkAt("student", "model/student.backbone."),
        NetworkAt("student", "student/backbone."),
    ),
    lacks=("dino_loss", "ibot_loss", "pytorch-lightning_version"),
    evaluated="the authors evaluate the teacher",
    dialects=("timm ViT", "DINOv2 in chunks"),
    steps_from_field=1,
    heads_by_width=DINOV2_VITS,
    defines=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    traps=("Iterations count from zero", "rank files hold one shard each"),
)
