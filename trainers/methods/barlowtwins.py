"""Barlow Twins: make the cross-correlation of two views' features the identity matrix.

Zbontar, Jing, Misra, LeCun and Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
ICML 2021, arXiv 2103.03230. Reference: facebookresearch/barlowtwins @ 8e8d284, main.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, views
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.networks import Projected
from dse_monitor.trainers.blocks.objectives import off_diagonal
from dse_monitor.trainers.distributed import gather_with_gradient, world_size
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsRecipe(Recipe):
    """Barlow Twins' numbers: the defaults of main.py, ResNet-50.

    Attributes:
        lr_biases: learning rate of one-dimensional parameters, per 256 images.
        projector_width: width of the projector's three layers.
        off_diagonal_weight: lambda, the weight of redundancy against invariance.
        final_lr_fraction: where the learning rate ends, as a fraction of its peak.
    """

    backbone: str = "resnet50"  # main.py
    batch_size: int = 2048  # --batch-size
    epochs: int = 1000  # --epochs
    warmup_epochs: int = 10  # adjust_learning_rate, fixed
    lr: float = 0.2  # --learning-rate-weights, per 256 images
    lr_biases: float = 0.0048  # --learning-rate-biases
    final_lr_fraction: float = 0.001  # adjust_learning_rate
    weight_decay: float = 1e-6  # --weight-decay
    optimizer: str = "lars"
    projector_width: int = 8192  # --projector
    off_diagonal_weight: float = 0.0051  # --lambd

    @classmethod
    def tiny(cls) -> BarlowTwinsRecipe:
        """A four-block ResNet on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="resnet_mini",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=4.0,  # a small batch, and LARS takes small steps
            lr_biases=0.1,
            projector_width=256,
            off_diagonal_weight=0.02,  # fewer pairs per dimension than at 8192
        )


def cross_correlation(z1: Tensor, z2: Tensor, batch_size: int) -> Tensor:
    """Correlation of two views' batch-normalised features over the batches of all processes.

    The authors sum the matrix over processes without gradient, so that their gradient shrinks with the number
    of processes; here it is that of the joined batch.

    Args:
        z1: [B, C], mean 0 and variance 1 over the joined batch.
        z2: [B, C].
        batch_size: images of all processes together.

    Returns:
        [C, C].
    """
    return gather_with_gradient(z1.float()).T @ gather_with_gradient(z2.float()) / batch_size


def redundancy_terms(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """Invariance sum_i (C_ii - 1)^2 and redundancy sum_{i != j} C_ij^2 (equation 1), both unweighted sums."""
    return (correlation.diagonal() - 1).square().sum(), off_diagonal(correlation).square().sum()


class BarlowTwins(Method):
    """Redundancy reduction between two views."""

    recipe_type = BarlowTwinsRecipe
    batch_coupled = "batch norm, and a correlation over the batch"
    differences = (
        "Over several processes the gradient is that of the joined batch. The released sum over processes "
        "has no gradient, which divides it by their number; LARS hides that for weights, not for biases and "
        "norms. The correlation is computed in float32."
    )

    def __init__(self, recipe: BarlowTwinsRecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        spec = self.backbone_spec = backbones.describe(recipe.backbone, recipe.image_size)
        widths = (spec.width, *[recipe.projector_width] * 3)
        self.student = Projected(backbones.build(spec), mlp(widths, bias=False, last_bias=False))
        self.bn = nn.BatchNorm1d(
            recipe.projector_width, affine=False
        )  # after the projector, by the authors' name

    def views(self) -> views.MultiCrop:
        """BYOL's asymmetric pair."""
        return views.MultiCrop(views.byol_pair(self.recipe.image_size))

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """One pass per view: batch statistics are per view. Dense: the tokens of both views, [2B, N, D]."""
        (z1, dense1), (z2, dense2) = (self.student(images) for images in views.images)
        with torch.autocast(z1.device.type, enabled=False):
            rows = len(z1) * world_size()
            on, off = redundancy_terms(cross_correlation(self.bn(z1.float()), self.bn(z2.float()), rows))
            loss = on + self.recipe.off_diagonal_weight * off
        logs = {"invariance": on.detach(), "redundancy": off.detach()}
        return StepOutput(loss, torch.cat([dense1, dense2]), logs)

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Two learning rates on one curve."""
        r, steps, scale = self.recipe, plan.total_steps, plan.batch_size / 256
        warmup = r.warmup_epochs * plan.steps_per_epoch
        curve = optim.linear_cosine(scale, scale * r.final_lr_fraction, steps, warmup_steps=warmup)
        return {
            "lr": curve * r.lr,
            "lr_biases": curve * r.lr_biases,
            "weight_decay": optim.constant(r.weight_decay, steps),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """One-dimensional parameters have their own rate, no decay and no adaptation."""
        return optim.split_by_shape(self.student.named_parameters(), flat_lr="lr_biases")
