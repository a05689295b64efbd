"""SimCLR: tell the other view of an image from the views of all other images.

Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020, arXiv 2002.05709. Written from the paper.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, views
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.networks import Projected
from dse_monitor.trainers.distributed import gather_with_gradient
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class SimCLRRecipe(Recipe):
    """SimCLR's numbers: the paper's default setting, ResNet-50.

    Attributes:
        projection: width of the projector's output.
        temperature: cosines are divided by it.
    """

    backbone: str = "resnet50"  # section 2.2
    batch_size: int = 4096  # section 2.2
    epochs: int = 100  # section 2.2
    warmup_epochs: int = 10  # section 2.2
    lr: float = 0.3  # section 2.2, per 256 images
    weight_decay: float = 1e-6  # section 2.2
    optimizer: str = "lars"
    projection: int = 128  # section 2.2
    temperature: float = 0.1  # table 5

    @classmethod
    def tiny(cls) -> SimCLRRecipe:
        """A four-block ResNet on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="resnet_mini",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=4.0,  # a small batch, and LARS takes small steps
        )


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each view's partner among all other views of the batch (equation 1).

    Args:
        z1: projections of the first views, [B, C].
        z2: projections of the second views of the same images, [B, C].
        temperature: cosines are divided by it.
    """
    z = F.normalize(torch.cat([z1.float(), z2.float()]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    partners = torch.arange(len(z), device=z.device).roll(len(z1))
    return F.cross_entropy(logits, partners)


class SimCLR(Method):
    """Contrast of two views with the rest of the batch."""

    recipe_type = SimCLRRecipe
    batch_coupled = "batch norm, and negatives from the batch"
    differences = "It was written from the paper, without its code."

    def __init__(self, recipe: SimCLRRecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        spec = self.backbone_spec = backbones.describe(recipe.backbone, recipe.image_size)
        projector = mlp((spec.width, spec.width, recipe.projection), last_bias=False)
        self.student = Projected(backbones.build(spec), projector)

    def views(self) -> views.MultiCrop:
        """Two draws of appendix A's view, colours jittered at strength 1."""
        crop = views.Crop(
            size=self.recipe.image_size, scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), blur=0.5
        )
        return views.MultiCrop([crop, crop])

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """One pass per view. Dense: the tokens of both views, [2B, N, D]."""
        (z1, dense1), (z2, dense2) = (self.student(images) for images in views.images)
        with torch.autocast(z1.device.type, enabled=False):
            loss = nt_xent(gather_with_gradient(z1), gather_with_gradient(z2), self.recipe.temperature)
        return StepOutput(loss, torch.cat([dense1, dense2]))

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Linear warmup, then a cosine to zero."""
        r, steps = self.recipe, plan.total_steps
        warmup = r.warmup_epochs * plan.steps_per_epoch
        return {
            "lr": optim.linear_cosine(r.lr * plan.batch_size / 256, 0.0, steps, warmup_steps=warmup),
            "weight_decay": optim.constant(r.weight_decay, steps),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """One-dimensional parameters are neither decayed nor adapted."""
        return optim.split_by_shape(self.student.named_parameters())
