"""DenseCL: MoCo v2 plus the same contrast for every position, matched across views by backbone features.

Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", CVPR 2021,
arXiv 2011.09157. Reference: WXinlong/DenseCL @ b64bbb6, models/densecl.py and models/necks.py of openselfsup.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dse_monitor.trainers import backbones, distributed
from dse_monitor.trainers.blocks import optim, teacher, views
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.networks import build_without_zero_init
from dse_monitor.trainers.blocks.objectives import queue_contrast
from dse_monitor.trainers.blocks.queues import KeyQueue
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class DenseCLRecipe(Recipe):
    """DenseCL's numbers: configs/selfsup/densecl/densecl_imagenet_200ep.py, ResNet-50; ``coco`` for COCO.

    Attributes:
        hidden: hidden width of both heads.
        projection: output width of both.
        queue_length: keys in each queue; a multiple of the batch.
        temperature: of both contrasts.
        dense_weight: lambda, the share of the dense loss.
        teacher_momentum: of the key network, constant.
    """

    presets: ClassVar[tuple[str, ...]] = ("tiny", "coco")

    backbone: str = "resnet50"  # model.backbone
    batch_size: int = 256  # 8 GPUs x 32
    epochs: int = 200  # total_epochs
    warmup_epochs: int = 0  # there is none
    lr: float = 0.03  # optimizer.lr, not scaled by the batch
    weight_decay: float = 1e-4  # optimizer.weight_decay, on every parameter
    optimizer: str = "sgd"
    hidden: int = 2048  # model.neck.hid_channels
    projection: int = 128  # model.neck.out_channels
    queue_length: int = 65536  # model.queue_len
    temperature: float = 0.2  # model.head.temperature
    dense_weight: float = 0.5  # model.loss_lambda
    teacher_momentum: float = 0.999  # model.momentum

    @classmethod
    def tiny(cls) -> DenseCLRecipe:
        """A four-block ResNet on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="resnet_mini",
            image_size=64,
            batch_size=64,
            epochs=10,
            hidden=256,
            projection=64,
            queue_length=512,
            teacher_momentum=0.98,  # a tenth of the steps needs faster keys
        )

    @classmethod
    def coco(cls) -> DenseCLRecipe:
        """The same on COCO, 800 epochs (densecl_coco_800ep.py)."""
        return dataclasses.replace(cls(), lr=0.3, epochs=800)  # optimizer.lr, total_epochs


def correspondence(query_features: Tensor, key_features: Tensor) -> Tensor:
    """For every query position the most similar key position by cosine of backbone features (equation 5).

    Args:
        query_features: [B, N, D].
        key_features: [B, N, D].

    Returns:
        int64 [B, N]. Not mutual: several queries may share a key.
    """
    queries, keys = (F.normalize(x.detach().float(), dim=-1) for x in (query_features, key_features))
    return (queries @ keys.mT).argmax(-1)


def dense_contrast(
    queries: Tensor, keys: Tensor, matches: Tensor, queue: Tensor, temperature: float
) -> Tensor:
    """InfoNCE of each position with its matched key position against image-level keys (equation 3).

    Args:
        queries: [B, N, C], not normalised.
        keys: [B, N, C], not normalised; no gradient.
        matches: [B, N] from :func:`correspondence`.
        queue: [C, Q], unit columns.
        temperature: tau.

    Returns:
        Mean over the B * N positions.
    """
    keys = F.normalize(keys.detach().float(), dim=-1)
    matched = keys.gather(1, matches[..., None].expand(-1, -1, keys.shape[-1]))
    queries = F.normalize(queries.float(), dim=-1)
    return queue_contrast(queries.flatten(0, 1), matched.flatten(0, 1), queue, temperature)


class Projections(NamedTuple):
    """What the neck makes of one view, none of it normalised.

    Attributes:
        image: [B, C], from the pooled features.
        grid: [B, N, C], from every position.
        pooled: [B, C], mean of ``grid``.
        features: [B, N, D], the backbone's map.
    """

    image: Tensor
    grid: Tensor
    pooled: Tensor
    features: Tensor


class Neck(nn.Module):
    """Two heads of equal form: for the image, and for every position (1x1 convolutions as Linears)."""

    def __init__(self, width: int, hidden: int, projection: int) -> None:
        super().__init__()
        self.image = mlp((width, hidden, projection), norm=False)
        self.grid = mlp((width, hidden, projection), norm=False)  # keeps torch's default start, as released
        for layer in self.image:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor, dense: Tensor) -> Projections:
        """Pooled features [B, D] and the map [B, N, D]."""
        grid = self.grid(dense)
        return Projections(self.image(pooled), grid, grid.mean(1), dense)


class Network(nn.Module):
    """Backbone and neck."""

    def __init__(self, backbone: nn.Module, neck: Neck) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, images: Tensor) -> Projections:
        """Images [B, 3, h, w]."""
        return self.neck(*backbones.features(self.backbone, images))


class DenseCL(Method):
    """Dense contrastive learning."""

    recipe_type = DenseCLRecipe
    teachers = ("teacher",)
    batch_coupled = "batch norm, and queues that advance by the batch"
    sync_batchnorm = False  # keys see other images' statistics by shuffling instead
    differences = (
        "Queues move after the optimiser step instead of after the loss: the same numbers, and negatives are "
        "those of the step in every micro-batch. The 1x1 convolutions of the dense head are linear layers on "
        "positions: the same map. One process has nothing to shuffle for its batch norms, as there. "
        "The authors train in float32 (`--precision float32`)."
    )

    def __init__(self, recipe: DenseCLRecipe) -> None:
        super().__init__(recipe)
        self.recipe = r = recipe
        if r.queue_length % r.batch_size:
            raise ValueError(
                f"queue_length {r.queue_length} is no multiple of batch_size {r.batch_size}: keys of one "
                "batch would be overwritten in part; choose another length"
            )
        spec = self.backbone_spec = backbones.describe(r.backbone, r.image_size, ("conv",))
        backbone = build_without_zero_init(spec)
        for layer in backbone.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # by fan-in, as mmcv's default
        self.student = Network(backbone, Neck(spec.width, r.hidden, r.projection))
        self.teacher = teacher.frozen_copy(self.student)
        self.queue = KeyQueue(r.projection, r.queue_length)
        self.dense_queue = KeyQueue(r.projection, r.queue_length)

    def views(self) -> views.MultiCrop:
        """Two draws of MoCo v2's view: query and key."""
        return views.MultiCrop([views.moco_v2_crop(self.recipe.image_size)] * 2)

    def before_step(self, progress: Progress) -> None:
        """The key network follows the weights of the step before."""
        teacher.ema_update(self.teacher, self.student, self.recipe.teacher_momentum)

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """Only the first view is a query. Dense: the query network's map, [B, N, D]."""
        r = self.recipe
        query = self.student(views.images[0])
        with torch.no_grad():
            key = self._keys(views.images[1])
        with torch.autocast(query.image.device.type, enabled=False):
            image_loss = queue_contrast(
                F.normalize(query.image.float()),
                F.normalize(key.image.float()),
                self.queue.columns,
                r.temperature,
            )
            matches = correspondence(query.features, key.features)
            dense_loss = dense_contrast(
                query.grid, key.grid, matches, self.dense_queue.columns, r.temperature
            )
            loss = (1 - r.dense_weight) * image_loss + r.dense_weight * dense_loss
        self.queue.observe(distributed.gather(F.normalize(key.image.float())))
        self.dense_queue.observe(distributed.gather(F.normalize(key.pooled.float())))
        logs = {"image_loss": image_loss.detach(), "dense_loss": dense_loss.detach()}
        return StepOutput(loss, query.features, logs)

    def _keys(self, images: Tensor) -> Projections:
        """Keys from a shuffled share of the joined batch, put back in order: statistics betray no image."""
        if distributed.world_size() == 1:
            return self.teacher(images)
        joined = distributed.gather(images)
        order = distributed.of_first_process(torch.randperm(len(joined), device=images.device))
        mine = slice(distributed.rank() * len(images), (distributed.rank() + 1) * len(images))
        keys = [distributed.gather(part) for part in self.teacher(joined[order[mine]])]
        back = order.argsort()[mine]
        return Projections(*(part[back] for part in keys))

    def after_step(self, progress: Progress) -> None:
        """This step's keys become negatives."""
        self.queue.update()
        self.dense_queue.update()

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """A cosine, once per epoch; no scaling by the batch."""
        r = self.recipe
        return {
            "lr": optim.epoch_cosine(r.lr, 0.0, plan.epochs, plan.steps_per_epoch),
            "weight_decay": optim.constant(r.weight_decay, plan.total_steps),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group; everything is decayed."""
        return [ParameterGroup("all", list(self.student.named_parameters()))]
