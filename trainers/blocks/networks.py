"""Backbone and projector as one network: the branch that most two-view methods train or average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from dse_monitor.trainers import backbones


class Projected(nn.Module):
    """An encoder and the MLP on its pooled features.

    Attributes:
        backbone: a timm model, under timm's names.
        projector: [B, D] -> [B, C].
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, h, w] -> projections [B, C] and dense tokens [B, N, D]."""
        features = backbones.features(self.backbone, images)
        return self.projector(features.pooled), features.dense


def build_without_zero_init(spec: backbones.Backbone, **kwargs: Any) -> nn.Module:
    """As :func:`backbones.build`, but the last norm of a ResNet's blocks starts at 1, not at 0.

    timm starts residual blocks as identities; BYOL, SwAV, DenseCL, DINO and EsViT did not.
    """
    with torch.device("meta"):
        is_resnet = spec.family == "conv" and isinstance(timm.create_model(spec.name), ResNet)
    return backbones.build(spec, **({"zero_init_last": False, **kwargs} if is_resnet else kwargs))


def multicrop_features(backbone: nn.Module, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Features of crops of several sizes: each size takes one pass, so batch statistics are per size.

    Args:
        backbone: a timm model.
        images: crops [B, 3, h, w], those of equal size next to each other, the large ones first.

    Returns:
        Pooled features of all crops [V * B, D], crop-major, and dense tokens of the first size [B', N, D].
    """
    sizes = list(dict.fromkeys(image.shape[-1] for image in images))
    batches = [torch.cat([image for image in images if image.shape[-1] == size]) for size in sizes]
    outputs = [backbones.features(backbone, batch) for batch in batches]
    return torch.cat([output.pooled for output in outputs]), outputs[0].dense
