"""ReSA: encoder features assign the samples of a batch to each other, and embeddings follow.

Weng et al., "Clustering Properties of Self-Supervised Learning", ICML 2025, arXiv 2501.18452.
Reference: winci-ai/resa @ e7869d1, method/base.py, method/resa.py, src/model.py, src/transform.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, teacher, views
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.networks import Projected
from dse_monitor.trainers.blocks.objectives import sinkhorn
from dse_monitor.trainers.distributed import gather
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class ReSARecipe(Recipe):
    """ReSA's numbers: the one-GPU command, ResNet-50.

    Attributes:
        final_lr_fraction: where the learning rate ends, as a fraction of its peak.
        strong_crops: strong views of each size, beside the one weak view; as many entries as sizes.
        further_sizes: sides of the strong views, pixels, after the first, which is ``image_size``.
        min_scales: smallest area of the views of each size; the first holds for the weak view too.
        max_scales: largest area, in the same way.
        solarise: probability of solarising the strong views of each size.
        hidden: hidden width of projector and predictor.
        projector_layers: linear layers of the projector.
        predict: whether the online branch has a predictor.
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
    strong_crops: tuple[int, ...] = (1,)  # --crops_nmb (example: 1 10)
    further_sizes: tuple[int, ...] = ()  # --crops_size without its first (example: 96)
    min_scales: tuple[float, ...] = (0.2,)  # --crops_min_scale (example: 0.32 0.05)
    max_scales: tuple[float, ...] = (1.0,)  # --crops_max_scale (example: 1.0 0.32)
    solarise: tuple[float, ...] = (0.2,)  # --solarization_prob (example: 0.2 0.0)
    hidden: int = 2048  # src/model.py
    projector_layers: int = 3  # --mlp_layers
    predict: bool = True  # --no_pred
    projection: int = 512  # --emb
    temperature: float = 0.4  # --temperature
    sinkhorn_temperature: float = 0.05  # method/base.py, a default argument
    sinkhorn_iterations: int = 3  # method/base.py, a default argument
    teacher_momentum: float = 0.996  # --momentum

    presets: ClassVar[tuple[str, ...]] = ("tiny", "four_gpus", "four_gpus_800")

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

    @classmethod
    def four_gpus(cls) -> ReSARecipe:
        """The README's command for four GPUs."""
        return dataclasses.replace(cls(), batch_size=1024, warmup_epochs=10)

    @classmethod
    def four_gpus_800(cls) -> ReSARecipe:
        """The README's long run."""
        return dataclasses.replace(cls.four_gpus(), epochs=800, lr=0.4)


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


def resa_loss(
    online: Sequence[Tensor], momentum: Sequence[Tensor], targets: Tensor, temperature: float
) -> Tensor:
    """Mean cross-entropy of embedding similarities with the assignment, over pairs of different views.

    Views after the second are compared with both momentum views.

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


def crops(recipe: ReSARecipe) -> list[views.Crop]:
    """The weak view, then the strong ones size by size (src/transform.py: MuiltiCropDataset).

    Raises:
        ValueError: the lists have different lengths, or there is no strong view.
    """
    r, sizes = recipe, (recipe.image_size, *recipe.further_sizes)
    lists = (r.strong_crops, sizes, r.min_scales, r.max_scales, r.solarise)
    if len({len(entries) for entries in lists}) != 1:
        raise ValueError(
            f"strong_crops {r.strong_crops}, sizes {sizes} (image_size and further_sizes), min_scales "
            f"{r.min_scales}, max_scales {r.max_scales} and solarise {r.solarise} need one entry per size"
        )
    if sum(r.strong_crops) < 1:
        raise ValueError("strong_crops holds no view: ReSA compares a weak view with at least one strong one")
    weak = views.plain_crop(r.image_size, (r.min_scales[0], r.max_scales[0]), interpolation="bilinear")
    strong = [
        views.Crop(size=size, scale=(low, high), blur=0.5, solarise=solarise, flip_last=True)
        for count, size, low, high, solarise in zip(*lists, strict=True)
        for _ in range(count)
    ]
    return [weak, *strong]


class ReSA(Method):
    """Representation self-assignment."""

    recipe_type = ReSARecipe
    teachers = ("teacher",)
    batch_coupled = "batch norm, and an assignment over the batch"
    differences = "Nothing is known to differ."

    def __init__(self, recipe: ReSARecipe) -> None:
        super().__init__(recipe)
        self.recipe = r = recipe
        spec = self.backbone_spec = backbones.describe(r.backbone, r.image_size)
        widths = (spec.width, *[r.hidden] * (r.projector_layers - 1), r.projection)
        self.student = Projected(backbones.build(spec), mlp(widths, last_norm="plain"))
        self.predictor = mlp((r.projection, r.hidden, r.projection)) if r.predict else nn.Identity()
        self.teacher = teacher.frozen_copy(self.student)

    def views(self) -> views.MultiCrop:
        """A weak view without colour, then the strong ones."""
        return views.MultiCrop(crops(self.recipe))

    def before_step(self, progress: Progress) -> None:
        """The momentum network follows the weights of the step before, then is read."""
        teacher.ema_update(self.teacher, self.student, progress.values["teacher_momentum"])

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """One pass per view and network. Dense: the online tokens of the large views, [2B, N, D]."""
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
        large = views.images[0].shape[-1]
        tokens = [f.dense for f, image in zip(online, views.images, strict=True) if image.shape[-1] == large]
        return StepOutput(loss, torch.cat(tokens))

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
