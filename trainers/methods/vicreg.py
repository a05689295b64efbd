"""VICReg: keep each dimension's variance, pull views together, decorrelate dimensions.

Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
ICLR 2022, arXiv 2105.04906. Reference: facebookresearch/vicreg @ 4e12602, main_vicreg.py, augmentations.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, views
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.networks import Projected
from dse_monitor.trainers.blocks.objectives import off_diagonal, variance_hinge
from dse_monitor.trainers.distributed import gather_with_gradient, world_size
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class VICRegRecipe(Recipe):
    """VICReg's numbers: the paper's 1000-epoch run, ResNet-50.

    Attributes:
        final_lr_fraction: where the learning rate ends, as a fraction of its peak.
        expander_width: width of the expander's three layers.
        invariance_weight: of the squared distance between views.
        variance_weight: of the variance hinge.
        covariance_weight: of the covariance penalty.
    """

    backbone: str = "resnet50"  # --arch
    batch_size: int = 2048  # --batch-size
    epochs: int = 1000  # paper, section 4 (main_vicreg.py: 100)
    warmup_epochs: int = 10  # adjust_learning_rate, fixed
    lr: float = 0.2  # --base-lr, per 256 images
    final_lr_fraction: float = 0.001  # adjust_learning_rate
    weight_decay: float = 1e-6  # --wd
    optimizer: str = "lars"
    expander_width: int = 8192  # --mlp
    invariance_weight: float = 25.0  # --sim-coeff
    variance_weight: float = 25.0  # --std-coeff
    covariance_weight: float = 1.0  # --cov-coeff

    presets: ClassVar[tuple[str, ...]] = ("tiny", "one_node")

    @classmethod
    def tiny(cls) -> VICRegRecipe:
        """A four-block ResNet on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="resnet_mini",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=4.0,  # a small batch, and LARS takes small steps
            expander_width=256,
        )

    @classmethod
    def one_node(cls) -> VICRegRecipe:
        """The README's command for eight GPUs, 100 epochs."""
        return dataclasses.replace(cls(), batch_size=512, epochs=100, lr=0.3)


def vicreg_terms(x: Tensor, y: Tensor, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance, variance and covariance, unweighted (equations 1 to 5).

    The variance is halved over the views, the covariance is not, as released.

    Args:
        x: [B, C] of this process, view 1.
        y: [B, C], view 2.
        batch_size: images of all processes together, the covariance's N.
    """
    x, y = x.float(), y.float()
    invariance = F.mse_loss(x, y)  # local: DDP's averaging makes it the global mean
    x, y = (z - z.mean(0) for z in (gather_with_gradient(x), gather_with_gradient(y)))
    variance = (variance_hinge(x) + variance_hinge(y)) / 2
    covariance = sum(off_diagonal(z.T @ z / (batch_size - 1)).square().sum() / z.shape[1] for z in (x, y))
    return invariance, variance, covariance  # pyright: ignore[reportReturnType]


class VICReg(Method):
    """Variance, invariance, covariance."""

    recipe_type = VICRegRecipe
    batch_coupled = "batch norm, and statistics over the batch"
    differences = (
        "Trained for the paper's 1000 epochs; the released default is 100 (`--preset one_node` is the "
        "README's run of that length). Nothing else is known to differ."
    )

    def __init__(self, recipe: VICRegRecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        spec = self.backbone_spec = backbones.describe(recipe.backbone, recipe.image_size)
        widths = (spec.width, *[recipe.expander_width] * 3)
        self.student = Projected(backbones.build(spec), mlp(widths, last_bias=False))

    def views(self) -> views.MultiCrop:
        """BYOL's asymmetric pair."""
        return views.MultiCrop(views.byol_pair(self.recipe.image_size))

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """One pass per view: batch statistics are per view. Dense: the tokens of both views, [2B, N, D]."""
        (x, dense1), (y, dense2) = (self.student(images) for images in views.images)
        r = self.recipe
        with torch.autocast(x.device.type, enabled=False):
            invariance, variance, covariance = vicreg_terms(x, y, len(x) * world_size())
        loss = (
            r.invariance_weight * invariance + r.variance_weight * variance + r.covariance_weight * covariance
        )
        logs = {"invariance": invariance, "variance": variance, "covariance": covariance}
        dense = torch.cat([dense1, dense2])
        return StepOutput(loss, dense, {name: value.detach() for name, value in logs.items()})

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Linear warmup, then a cosine, per step."""
        r, steps, peak = self.recipe, plan.total_steps, self.recipe.lr * plan.batch_size / 256
        warmup = r.warmup_epochs * plan.steps_per_epoch
        return {
            "lr": optim.linear_cosine(peak, peak * r.final_lr_fraction, steps, warmup_steps=warmup),
            "weight_decay": optim.constant(r.weight_decay, steps),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """One-dimensional parameters are neither decayed nor adapted."""
        return optim.split_by_shape(self.student.named_parameters())
