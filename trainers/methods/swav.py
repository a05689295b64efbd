"""SwAV: predict one view's balanced cluster assignment from the other views of the image.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
arXiv 2006.09882. Reference: facebookresearch/swav @ 06b1b7c, main_swav.py, src/resnet50.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, views
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.networks import build_without_zero_init, multicrop_features
from dse_monitor.trainers.blocks.objectives import sinkhorn
from dse_monitor.trainers.distributed import world_size
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views

LARGE_CROPS = 2  # the views that assignments are made from, --crops_for_assign


@dataclass(frozen=True, kw_only=True)
class SwAVRecipe(Recipe):
    """SwAV's numbers: swav_800ep_pretrain.sh, ResNet-50 on 64 GPUs; ``batch256`` is for one machine.

    Attributes:
        start_lr: learning rate at the start of the warmup; like ``lr`` it is not scaled by the batch.
        final_lr: where the learning rate ends.
        local_size: side of the small crops, pixels.
        local_crops: small crops per image.
        global_scale: area range of the large crops.
        local_scale: area range of the small crops.
        hidden: hidden width of the projection head.
        projection: its output width.
        prototypes: number of prototypes K.
        temperature: of the prediction.
        epsilon: temperature of the assignment.
        sinkhorn_iterations: rounds of balancing.
        freeze_prototypes_steps: optimiser steps during which the prototypes stay.
        queue_length: embeddings kept per large crop over all processes, for small batches; 0 for none.
        queue_from_epoch: first epoch in which the queue is filled.
    """

    presets: ClassVar[tuple[str, ...]] = ("tiny", "batch256")

    backbone: str = "resnet50"  # --arch
    batch_size: int = 4096  # 64 GPUs x 64
    epochs: int = 800  # --epochs
    warmup_epochs: int = 10  # --warmup_epochs
    lr: float = 4.8  # --base_lr
    start_lr: float = 0.3  # --start_warmup
    final_lr: float = 0.0048  # --final_lr
    weight_decay: float = 1e-6  # --wd
    optimizer: str = "larc"
    local_size: int = 96  # --size_crops
    local_crops: int = 6  # --nmb_crops
    global_scale: tuple[float, float] = (0.14, 1.0)  # --min_scale_crops, --max_scale_crops
    local_scale: tuple[float, float] = (0.05, 0.14)  # --min_scale_crops, --max_scale_crops
    hidden: int = 2048  # --hidden_mlp
    projection: int = 128  # --feat_dim
    prototypes: int = 3000  # --nmb_prototypes
    temperature: float = 0.1  # --temperature
    epsilon: float = 0.05  # --epsilon
    sinkhorn_iterations: int = 3  # --sinkhorn_iterations
    freeze_prototypes_steps: int = 313  # --freeze_prototypes_niters
    queue_length: int = 0  # --queue_length
    queue_from_epoch: int = 15  # --epoch_queue_starts

    @classmethod
    def tiny(cls) -> SwAVRecipe:
        """A four-block ResNet on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="resnet_mini",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=2.0,  # LARC takes small steps
            start_lr=0.1,
            final_lr=0.002,
            local_size=32,
            local_crops=2,
            hidden=256,
            projection=64,
            prototypes=128,
            freeze_prototypes_steps=10,
        )

    @classmethod
    def batch256(cls) -> SwAVRecipe:
        """The small-batch script, with a queue (swav_200ep_bs256_pretrain.sh; another has 400 epochs)."""
        return dataclasses.replace(
            cls(),
            batch_size=256,  # 4 GPUs x 64
            epochs=200,  # --epochs
            warmup_epochs=0,  # --warmup_epochs
            lr=0.6,  # --base_lr
            final_lr=0.0006,  # --final_lr
            freeze_prototypes_steps=5005,  # --freeze_prototypes_niters
            queue_length=3840,  # --queue_length
        )


def assignments(
    scores: Tensor, epsilon: float, iterations: int, queued_scores: Tensor | None = None
) -> Tensor:
    """Balanced soft assignment of one crop's samples to prototypes (section 3.1), without gradient.

    Args:
        scores: [B, K], embeddings times prototypes.
        epsilon: temperature.
        iterations: rounds of Sinkhorn.
        queued_scores: [Q, K] of a full queue; balanced together with the batch, then dropped.

    Returns:
        [B, K], rows sum to 1.
    """
    scores = scores.detach().float()
    joined = scores if queued_scores is None else torch.cat([queued_scores.float(), scores])
    return sinkhorn(joined, epsilon, iterations)[-len(scores) :]


def swav_loss(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of all other crops' predictions with each large crop's assignment (equation 2).

    Args:
        scores: [V, B, K], the large crops first.
        targets: [T, B, K] from :func:`assignments`.
        temperature: of the prediction.
    """
    log_p = F.log_softmax(scores.float() / temperature, dim=-1)
    crops = len(scores)
    terms = []
    for i, target in enumerate(targets):
        others = [v for v in range(crops) if v != i]
        terms.append(-(target * log_p[others]).sum(-1).mean(-1).sum() / (crops - 1))
    return torch.stack(terms).mean()


def queue_is_full(queue: Tensor) -> bool:
    """Whether the last slot of one crop's queue [Q, C] was ever written (it starts as zeros)."""
    return bool(queue[-1].any())


def pushed(queue: Tensor, embeddings: Tensor) -> Tensor:
    """A queue [Q, C] with this batch's embeddings [B, C] in front and the oldest dropped.

    Raises:
        ValueError: the batch is larger than the queue.
    """
    if len(embeddings) > len(queue):
        raise ValueError(
            f"{len(embeddings)} embeddings do not fit a queue of {len(queue)} per process: raise queue_length"
        )
    return torch.cat([embeddings.detach().to(queue.dtype), queue[: len(queue) - len(embeddings)]])


class Network(nn.Module):
    """Backbone, projection head and prototypes; all crops share one pass of the head."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, prototypes: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.prototypes = prototypes

    def forward(self, images: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Crops -> unit embeddings [V * B, C], scores [V * B, K], large crops' tokens [2B, N, D]."""
        pooled, dense = multicrop_features(self.backbone, images)
        embeddings = F.normalize(self.projector(pooled))
        return embeddings, self.prototypes(embeddings), dense


class SwAV(Method):
    """Swapped assignments between views."""

    recipe_type = SwAVRecipe
    std = (0.228, 0.224, 0.225)  # multicropdataset.py
    batch_coupled = "batch norm, and an assignment over the batch"
    rank_buffers = ("queue",)
    differences = (
        "Batch norms share statistics over all processes; the released large-batch script shares them among "
        "eight. Embeddings enter the queue after the step instead of after the loss: the same numbers. "
        "apex's LARC is written anew, so that apex is not needed."
    )

    queue: Tensor

    def __init__(self, recipe: SwAVRecipe) -> None:
        super().__init__(recipe)
        self.recipe = r = recipe
        spec = self.backbone_spec = backbones.describe(r.backbone, r.image_size)
        prototypes = nn.Linear(r.projection, r.prototypes, bias=False)
        projector = mlp((spec.width, r.hidden, r.projection))
        self.student = Network(build_without_zero_init(spec), projector, prototypes)
        kept = r.queue_length - r.queue_length % r.batch_size  # whole batches, as released
        self.register_buffer("queue", torch.zeros(LARGE_CROPS, kept // world_size(), r.projection))
        self._waiting: list[Tensor] = []

    def views(self) -> views.MultiCrop:
        """Large crops, then small ones, all with the same strong colours."""
        r = self.recipe
        photometry = {"interpolation": "bilinear", "jitter": (0.8, 0.8, 0.8, 0.2), "blur": 0.5}
        large = views.Crop(size=r.image_size, scale=r.global_scale, **photometry)
        small = views.Crop(size=r.local_size, scale=r.local_scale, **photometry)
        return views.MultiCrop([large] * LARGE_CROPS + [small] * r.local_crops)

    @torch.no_grad()
    def before_step(self, progress: Progress) -> None:
        """Prototypes go back to the unit sphere."""
        weight = self.student.prototypes.weight
        weight.copy_(F.normalize(weight))

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """Dense: the layer-4 map of the large crops, [2B, N, D] crop-major."""
        r = self.recipe
        embeddings, scores, dense = self.student(views.images)
        with torch.autocast(scores.device.type, enabled=False):
            scores = scores.float().unflatten(0, (len(views.images), -1))
            targets = torch.stack(
                [
                    assignments(scores[i], r.epsilon, r.sinkhorn_iterations, self._queued_scores(i))
                    for i in range(LARGE_CROPS)
                ]
            )
            loss = swav_loss(scores, targets, r.temperature)
        if self.queue.shape[1] and progress.epoch >= r.queue_from_epoch:
            self._waiting.append(embeddings.detach().unflatten(0, (len(views.images), -1))[:LARGE_CROPS])
        entropy = -(targets * targets.clamp_min(1e-12).log()).sum(-1).mean()
        return StepOutput(loss, dense, {"assignment_entropy": entropy})

    @torch.no_grad()
    def _queued_scores(self, crop: int) -> Tensor | None:
        if not self.queue.shape[1] or not queue_is_full(self.queue[crop]):
            return None
        return F.linear(self.queue[crop], self.student.prototypes.weight.float())

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Per step; nothing is scaled by the batch."""
        r, steps = self.recipe, plan.total_steps
        warmup = r.warmup_epochs * plan.steps_per_epoch
        return {
            "lr": optim.linspace_cosine(r.lr, r.final_lr, steps, warmup_steps=warmup, start=r.start_lr),
            "weight_decay": optim.constant(r.weight_decay, steps),
        }

    def after_backward(self, progress: Progress) -> None:
        """Prototypes sit out the first steps: no momentum, no decay."""
        if progress.step < self.recipe.freeze_prototypes_steps:
            self.student.prototypes.weight.grad = None

    def after_step(self, progress: Progress) -> None:
        """This step's embeddings enter the queue."""
        if self._waiting:
            large = torch.cat(self._waiting, 1)
            self.queue = torch.stack([pushed(*pair) for pair in zip(self.queue, large, strict=True)])
            self._waiting.clear()

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group; LARC adapts everything, batch norms and biases too."""
        return [ParameterGroup("all", list(self.student.named_parameters()))]
