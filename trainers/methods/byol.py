"""BYOL: predict what a slowly moving copy of the network says of another view.

Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, arXiv 2006.07733.
Reference: yaox12/BYOL-PyTorch @ edefc01, trainer/byol_trainer.py, model/byol_model.py, utils/params_util.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, teacher, views
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.networks import Projected, build_without_zero_init
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class BYOLRecipe(Recipe):
    """BYOL's numbers: config/train_config.yaml of the reference, ResNet-50.

    Attributes:
        start_lr_fraction: where the warmup starts and the cosine heads, as a fraction of the peak.
        hidden: hidden width of projector and predictor.
        projection: output width of both.
        teacher_momentum: of the target's EMA at the start; a cosine takes it to 1.
    """

    backbone: str = "resnet50"  # model.backbone.type
    batch_size: int = 4096  # 32 GPUs x 128
    epochs: int = 300  # optimizer.total_epochs
    warmup_epochs: int = 10  # optimizer.warmup_epochs
    lr: float = 0.3  # optimizer.base_lr, per 256 images
    start_lr_fraction: float = 1e-3  # adjust_learning_rate
    weight_decay: float = 1e-6  # optimizer.weight_decay
    optimizer: str = "lars_inner"
    hidden: int = 4096  # model.projection.hidden_dim
    projection: int = 256  # model.projection.output_dim
    teacher_momentum: float = 0.99  # model.base_momentum

    @classmethod
    def tiny(cls) -> BYOLRecipe:
        """A four-block ResNet on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="resnet_mini",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=8.0,  # a small batch, and LARS takes small steps
            hidden=256,
            projection=64,
            teacher_momentum=0.98,  # a tenth of the steps needs a faster target
        )


def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """2 - 2 cos, mean over both directions (half of equation 2, which sums them), in [0, 4].

    Args:
        predictions: [2B, C], of the online network.
        targets: [2B, C], of the target network for the other view; they get no gradient.
    """
    cosine = (F.normalize(predictions.float()) * F.normalize(targets.detach().float())).sum(1)
    return 2 - 2 * cosine.mean()


def learning_rates(
    peak: float, floor_fraction: float, steps: int, warmup_steps: int, length: int
) -> np.ndarray:
    """The reference's curve: the cosine's period is all steps, so it stops short of its end by the warmup.

    Args:
        peak: learning rate after the warmup.
        floor_fraction: start of the warmup, as a fraction of ``peak``.
        steps: steps of the run by the authors' count.
        warmup_steps: how many of them warm up.
        length: how many values are wanted.
    """
    floor, t = peak * floor_fraction, np.arange(length, dtype=np.float64)
    rising = (peak - floor) * t / max(warmup_steps, 1) + floor
    falling = floor + 0.5 * (peak - floor) * (1 + np.cos((t - warmup_steps) * np.pi / steps))
    return np.where(t < warmup_steps, rising, falling)


class BYOL(Method):
    """Bootstrap your own latent."""

    recipe_type = BYOLRecipe
    evaluated = "teacher.backbone."
    teachers = ("teacher",)
    batch_coupled = "batch norm"
    differences = (
        "The reference is a third-party port to PyTorch, the code the DSE paper used; the authors' own is in "
        "JAX. Schedules count images as it does, but those of the given folder rather than ImageNet's "
        "1,281,167. The stem's norm weight is decayed and adapted, because its exemption by name misses it; "
        "kept, so that trajectories agree. The reference trains in float32 (`--precision float32`)."
    )

    def __init__(self, recipe: BYOLRecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        spec = self.backbone_spec = backbones.describe(recipe.backbone, recipe.image_size)
        projector = mlp((spec.width, recipe.hidden, recipe.projection))
        self.student = Projected(build_without_zero_init(spec), projector)
        self.predictor = mlp((recipe.projection, recipe.hidden, recipe.projection))
        self.teacher = teacher.frozen_copy(self.student)

    def views(self) -> views.MultiCrop:
        """The asymmetric pair, bilinear, blurred with a kernel of 23 pixels."""
        pair = views.byol_pair(self.recipe.image_size, interpolation="bilinear", blur_kernel=23)
        return views.MultiCrop(pair)

    def before_step(self, progress: Progress) -> None:
        """The target follows the weights of the step before, then is read."""
        teacher.ema_update(self.teacher, self.student, progress.values["teacher_momentum"])

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """Both views in one pass, so batch statistics are joint. Dense: the online tokens, [2B, N, D]."""
        projections, dense = self.student(torch.cat(views.images))
        with torch.no_grad():
            targets, _ = self.teacher(torch.cat(views.images[::-1]))
        return StepOutput(byol_loss(self.predictor(projections), targets), dense)

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Steps are counted from images, as released, even where the last batch of an epoch is dropped."""
        r = self.recipe
        steps, warmup = (n * plan.images // plan.batch_size for n in (plan.epochs, r.warmup_epochs))
        peak = r.lr * plan.batch_size / 256
        return {
            "lr": learning_rates(peak, r.start_lr_fraction, steps, warmup, plan.total_steps),
            "weight_decay": optim.constant(r.weight_decay, plan.total_steps),
            "teacher_momentum": optim.linspace_cosine(r.teacher_momentum, 1.0, steps)[: plan.total_steps],
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """One-dimensional parameters are exempt from decay and adaptation, but for the stem's norm weight.

        The authors exempt by name, and in their Sequential the stem's norm is called ``encoder.1``.
        """
        named = [*self.student.named_parameters(), *self.predictor.named_parameters(prefix="predictor")]
        exempt = [(name, p) for name, p in named if p.ndim == 1 and name != "backbone.bn1.weight"]
        names = {name for name, _ in exempt}
        return [
            ParameterGroup("weights", [(name, p) for name, p in named if name not in names]),
            ParameterGroup("exempt", exempt, weight_decay="", adapt=False),
        ]
