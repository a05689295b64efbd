"""ReSA: encoder features assign the samples of a batch to each other, and embeddings follow.

Weng et al., "Clustering Properties of Self-Supervised Learning", ICML 2025, arXiv 2501.18452.
Reference: winci-ai/resa @ e7869d1, method/base.py, method/resa.py, src/model.py, src/transform.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers import backbones, optim, teacher, views
from trainers.distributed import gather
from trainers.heads import mlp
from trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views
from trainers.networks import Projected
from trainers.objectives import sinkhorn


@dataclass(frozen=True, kw_only=True)
class ReSARecipe(Recipe):
    """ReSA's numbers: the one-GPU command, ResNet-50.

    Attributes:
        final_lr_fraction: where the learning rate ends, as a fraction of its peak.
        hidden: hidden width of projector and predictor.
        projection: output width of both.
        temperature: of the embeddings' softmax.
        sinkhorn_temperature: of the assignment.
        sinkhorn_iterations: rounds of balancing.
        teacher_momentum: of the momentum network at the start; a cosine takes it to 1.
    """

    backbone: str = "resnet50"  # --model
    batch_size: int = 256  # README, one GPU
    epochs: int = 100  # --epochs
    warmup_epochs: int = 2  # --warmup_epochs (10 at batch 1024)
    lr: float = 0.5  # --lr, per 256 images (0.4 for 800 epochs)
    final_lr_fraction: float = 0.1  # build_optimizer
    weight_decay: float = 1e-5  # --weight_decay, on every parameter
    optimizer: str = "sgd"
    hidden: int = 2048  # src/model.py
    projection: int = 512  # --emb
    temperature: float = 0.4  # --temperature
    sinkhorn_temperature: float = 0.05  # method/base.py, a default argument
    sinkhorn_iterations: int = 3  # method/base.py, a default argument
    teacher_momentum: float = 0.996  # --momentum

    @classmethod
    def tiny(cls) -> ReSARecipe:
        """A four-block ResNet on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="resnet_mini",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            hidden=256,
            projection=64,
            teacher_momentum=0.98,  # a tenth of the steps needs a faster teacher
        )


def assignment(online: Tensor, momentum: Tensor, temperature: float, iterations: int) -> Tensor:
    """Soft assignment of this process's samples to all samples, from encoder features of the weak view.

    Args:
        online: encoder features [B, D] of the online network; no gradient.
        momentum: encoder features [world * B, D] of the momentum network, all processes.
        temperature: of Sinkhorn.
        iterations: rounds.

    Returns:
        [B, world * B], rows sum to 1.
    """
    scores = F.normalize(online.detach().float()) @ F.normalize(momentum.detach().float()).T
    return sinkhorn(scores, temperature, iterations)


def resa_loss(online: list[Tensor], momentum: list[Tensor], targets: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of embedding similarities with the assignment, over pairs of different views.

    Args:
        online: predictions [B, C] of every view.
        momentum: projections [world * B, C] of the first two views, all processes; no gradient.
        targets: [B, world * B] from :func:`assignment`, shared by all pairs.
        temperature: of the softmax.
    """
    keys = [F.normalize(m.detach().float()) for m in momentum]
    terms = []
    for q, queries in enumerate(online):
        for v, key in enumerate(keys):
            if v != q:
                logits = F.normalize(queries.float()) @ key.T / temperature
                terms.append(-(targets * F.log_softmax(logits, dim=1)).sum(1).mean())
    return torch.stack(terms).mean()


class ReSA(Method):
    """Representation self-assignment."""

    recipe_type = ReSARecipe
    teachers = ("teacher",)
    batch_coupled = "batch norm, and an assignment over the batch"
    differences = (
        "Two views, one weak and one strong; the further views that the released lists allow are not built "
        "in."
    )

    def __init__(self, recipe: ReSARecipe) -> None:
        super().__init__(recipe)
        self.recipe = r = recipe
        spec = self.backbone_spec = backbones.describe(r.backbone, r.image_size)
        projector = mlp((spec.width, r.hidden, r.hidden, r.projection), last_norm="plain")
        self.student = Projected(backbones.build(spec), projector)
        self.predictor = mlp((r.projection, r.hidden, r.projection))
        self.teacher = teacher.frozen_copy(self.student)

    def views(self) -> views.MultiCrop:
        """A weak view without colour, then a strong one."""
        size, scale = self.recipe.image_size, (0.2, 1.0)
        weak = views.plain_crop(size, scale, interpolation="bilinear")
        return views.MultiCrop(
            [weak, views.Crop(size=size, scale=scale, blur=0.5, solarise=0.2, flip_last=True)]
        )

    def before_step(self, progress: Progress) -> None:
        """The momentum network follows the weights of the step before, then is read."""
        teacher.ema_update(self.teacher, self.student, progress.values["teacher_momentum"])

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """One pass per view and network. Dense: the online tokens, both views, [2B, N, D]."""
        online = [backbones.features(self.student.backbone, images) for images in views.images]
        predictions = [self.predictor(self.student.projector(f.pooled)) for f in online]
        with torch.no_grad():
            momentum = [backbones.features(self.teacher.backbone, images) for images in views.images[:2]]
            keys = [gather(self.teacher.projector(f.pooled)) for f in momentum]
        r = self.recipe
        with torch.autocast(predictions[0].device.type, enabled=False):
            targets = assignment(
                online[0].pooled, gather(momentum[0].pooled), r.sinkhorn_temperature, r.sinkhorn_iterations
            )
            loss = resa_loss(predictions, keys, targets, r.temperature)
        return StepOutput(loss, torch.cat([f.dense for f in online]))

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Per step; the learning rate ends at a tenth of its peak."""
        r, steps = self.recipe, plan.total_steps
        peak, warmup = r.lr * plan.batch_size / 256, r.warmup_epochs * plan.steps_per_epoch
        return {
            "lr": optim.linspace_cosine(peak, peak * r.final_lr_fraction, steps, warmup_steps=warmup),
            "weight_decay": optim.constant(r.weight_decay, steps),
            "teacher_momentum": optim.linspace_cosine(r.teacher_momentum, 1.0, steps),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group; everything is decayed."""
        named = [*self.student.named_parameters(), *self.predictor.named_parameters(prefix="predictor")]
        return [ParameterGroup("all", [(name, p) for name, p in named if p.requires_grad])]
