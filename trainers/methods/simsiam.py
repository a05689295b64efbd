"""SimSiam: one encoder, a small predictor, and a stop-gradient that keeps both views from collapsing.

Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv 2011.10566.
Reference: facebookresearch/simsiam @ a7bc177, main_simsiam.py, simsiam/builder.py, simsiam/loader.py.
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
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class SimSiamRecipe(Recipe):
    """SimSiam's numbers: the README command of the released code, ResNet-50.

    Attributes:
        projection: width of projector output and predictor output.
        predictor_hidden: the predictor's bottleneck.
        fixed_predictor_lr: keep the predictor's learning rate constant.
    """

    backbone: str = "resnet50"  # --arch
    batch_size: int = 512  # README, --batch-size
    epochs: int = 100  # --epochs
    warmup_epochs: int = 0  # there is none
    lr: float = 0.05  # --lr, per 256 images
    weight_decay: float = 1e-4  # --wd, on every parameter
    optimizer: str = "sgd"
    projection: int = 2048  # --dim
    predictor_hidden: int = 512  # --pred-dim
    fixed_predictor_lr: bool = True  # --fix-pred-lr, in the README command

    @classmethod
    def tiny(cls) -> SimSiamRecipe:
        """A four-block ResNet on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="resnet_mini",
            image_size=64,
            batch_size=64,
            epochs=10,
            projection=256,
            predictor_hidden=64,
        )


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Negative cosine of each prediction with the other view's projection (equation 2), in [-1, 1].

    Args:
        p1: predictions of view 1, [B, C].
        p2: predictions of view 2, [B, C].
        z1: projections of view 1, [B, C]; they get no gradient.
        z2: projections of view 2, [B, C]; they get no gradient.
    """
    first = F.cosine_similarity(p1.float(), z2.detach().float()).mean()
    return -0.5 * (first + F.cosine_similarity(p2.float(), z1.detach().float()).mean())


class SimSiam(Method):
    """Simple siamese representation learning."""

    recipe_type = SimSiamRecipe
    batch_coupled = "batch norm"
    differences = (
        "The projector is a module beside the network instead of in place of its last layer: the same "
        "numbers under other names. The authors train in float32 (`--precision float32`)."
    )

    def __init__(self, recipe: SimSiamRecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        spec = self.backbone_spec = backbones.describe(recipe.backbone, recipe.image_size)
        # hidden layers are as wide as the features, not as the projection
        widths = (spec.width, spec.width, spec.width, recipe.projection)
        projector = mlp(widths, bias=False, last_norm="plain")
        # the norm after the last bias cancels it
        projector[6].bias.requires_grad_(False)  # pyright: ignore[reportCallIssue]
        self.student = Projected(backbones.build(spec), projector)
        self.predictor = mlp((recipe.projection, recipe.predictor_hidden, recipe.projection), bias=False)

    def views(self) -> views.MultiCrop:
        """Two draws of MoCo v2's view."""
        return views.MultiCrop([views.moco_v2_crop(self.recipe.image_size)] * 2)

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """One pass per view: batch statistics are per view. Dense: the tokens of both views, [2B, N, D]."""
        (z1, dense1), (z2, dense2) = (self.student(images) for images in views.images)
        loss = simsiam_loss(self.predictor(z1), self.predictor(z2), z1, z2)
        spread = (
            F.normalize(z1.detach().float(), dim=1).std(0).mean() * z1.shape[1] ** 0.5
        )  # 1 when not collapsed
        return StepOutput(loss, torch.cat([dense1, dense2]), {"output_spread": spread})

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """The learning rate falls once per epoch; the predictor's stays."""
        r, peak = self.recipe, self.recipe.lr * plan.batch_size / 256
        return {
            "lr": optim.epoch_cosine(peak, 0.0, plan.epochs, plan.steps_per_epoch),
            "lr_predictor": optim.constant(peak, plan.total_steps),
            "weight_decay": optim.constant(r.weight_decay, plan.total_steps),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """Everything is decayed, batch norms and biases too."""
        student = [(name, p) for name, p in self.student.named_parameters() if p.requires_grad]
        lr = "lr_predictor" if self.recipe.fixed_predictor_lr else "lr"
        return [
            ParameterGroup("encoder", student),
            ParameterGroup("predictor", list(self.predictor.named_parameters()), lr=lr),
        ]
