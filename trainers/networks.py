"""Backbone and projector as one network: the branch that most two-view methods train or average."""

from __future__ import annotations

from torch import Tensor, nn

from trainers import backbones


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
