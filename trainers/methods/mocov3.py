"""MoCo v3: match each query with the key of the other view among the keys of the whole batch.

Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers", arXiv 2104.02057.
Reference: facebookresearch/moco-v3 @ c349e6e, main_moco.py, moco/{builder,loader,optimizer}.py, vits.py.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dse_monitor.trainers import backbones, distributed
from dse_monitor.trainers.blocks import optim, teacher, views
from dse_monitor.trainers.blocks.heads import mlp
from dse_monitor.trainers.blocks.networks import Projected
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class MoCoV3Recipe(Recipe):
    """MoCo v3's numbers: the ViT-Small command of CONFIG.md; ``resnet50`` is that for a ResNet-50.

    Attributes:
        num_heads: attention heads of a ViT; the authors' ViT-Small has 12, timm's has 6.
        smallest_crop: lower end of the crops' area range.
        hidden: hidden width of projector and predictor.
        projection: output width of both.
        temperature: of the contrast.
        teacher_momentum: of the momentum encoder at the start; a cosine takes it to 1.
        freeze_patches: keep a ViT's patch projection at its random start.
    """

    presets: ClassVar[tuple[str, ...]] = ("tiny", "resnet50")

    backbone: str = "vit_small_patch16_224"  # -a vit_small
    num_heads: int = 12  # vits.py: vit_small and vit_base alike
    batch_size: int = 4096  # CONFIG.md
    epochs: int = 300  # --epochs
    warmup_epochs: int = 40  # --warmup-epochs
    lr: float = 1.5e-4  # --lr, per 256 images
    weight_decay: float = 0.1  # --weight-decay, on every parameter
    smallest_crop: float = 0.08  # --crop-min
    hidden: int = 4096  # --moco-mlp-dim
    projection: int = 256  # --moco-dim
    temperature: float = 0.2  # --moco-t
    teacher_momentum: float = 0.99  # --moco-m, with --moco-m-cos
    freeze_patches: bool = True  # --stop-grad-conv1

    @classmethod
    def tiny(cls) -> MoCoV3Recipe:
        """A four-block ViT on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="vit_mini_patch8",
            num_heads=3,
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=2e-3,  # x 64 / 256
            hidden=256,
            projection=64,
        )

    @classmethod
    def resnet50(cls) -> MoCoV3Recipe:
        """The ResNet-50 command of CONFIG.md, LARS, 100 epochs.

        For 300 epochs --lr 0.3; for 1000 also --weight-decay 1.5e-6 and --teacher-momentum 0.996.
        """
        return dataclasses.replace(
            cls(),
            backbone="resnet50",  # -a
            epochs=100,  # --epochs
            warmup_epochs=10,  # --warmup-epochs
            lr=0.6,  # --lr, per 256 images
            weight_decay=1e-6,  # --wd, not on one-dimensional parameters
            optimizer="lars",  # --optimizer
            smallest_crop=0.2,  # --crop-min
            temperature=1.0,  # --moco-t
            freeze_patches=False,  # no --stop-grad-conv1
        )


def contrast(queries: Tensor, keys: Tensor, temperature: float, first: int = 0) -> Tensor:
    """2 tau times the InfoNCE of each query with its key among all keys (section 3, Algorithm 1).

    Args:
        queries: [B, C], not normalised.
        keys: [world * B, C] of all processes, not normalised; no gradient.
        temperature: tau.
        first: row of ``keys`` that belongs to the first query.
    """
    queries, keys = F.normalize(queries.float()), F.normalize(keys.detach().float())
    labels = torch.arange(first, first + len(queries), device=queries.device)
    return 2 * temperature * F.cross_entropy(queries @ keys.T / temperature, labels)


def initialise(model: VisionTransformer, *, freeze_patches: bool) -> None:
    """The authors' start: fixed positions (row first), uniform weights, an all but zero cls token."""
    patch = model.patch_embed.proj
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear):
                if name.endswith("qkv"):  # three matrices side by side, each by its own fan
                    bound = math.sqrt(6 / (layer.weight.shape[0] // 3 + layer.weight.shape[1]))
                    layer.weight.uniform_(-bound, bound)
                else:
                    nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        assert model.cls_token is not None
        assert model.pos_embed is not None
        model.cls_token.normal_(std=1e-6)
        grid = math.isqrt(model.patch_embed.num_patches)
        table = backbones.sincos_positions(
            model.embed_dim, grid, cls=True, rows_first=True, dtype=torch.float32
        )
        model.pos_embed.copy_(table)
        bound = math.sqrt(6 / (math.prod(patch.weight.shape[1:]) + model.embed_dim))
        patch.weight.uniform_(-bound, bound)
        nn.init.zeros_(patch.bias)
    model.pos_embed.requires_grad_(False)
    patch.requires_grad_(not freeze_patches)


class MoCoV3(Method):
    """Momentum contrast without a queue."""

    recipe_type = MoCoV3Recipe
    evaluated = "teacher.backbone."
    teachers = ("teacher",)
    batch_coupled = "batch norm in the heads, and negatives from the batch"
    differences = (
        "The authors' ViTs with a convolutional stem are not here. One process is enough; the released "
        "script wants several."
    )

    def __init__(self, recipe: MoCoV3Recipe) -> None:
        super().__init__(recipe)
        self.recipe = r = recipe
        spec = backbones.describe(r.backbone, r.image_size, ("vit", "conv"))
        if spec.family == "vit":
            spec = backbones.describe(
                r.backbone, r.image_size, ("vit",), cls_token=True, norm_eps=1e-6, num_heads=r.num_heads
            )
        self.backbone_spec = spec
        backbone = backbones.build(spec)
        if isinstance(backbone, VisionTransformer):
            initialise(backbone, freeze_patches=r.freeze_patches)
            projector = mlp(
                (spec.width, r.hidden, r.hidden, r.projection), bias=False, last_bias=False, last_norm="plain"
            )
            predictor_norm = "plain"
        else:  # the authors' ResNet heads are a layer shorter, and the predictor ends without a norm
            projector = mlp(
                (spec.width, r.hidden, r.projection), bias=False, last_bias=False, last_norm="plain"
            )
            predictor_norm = "none"
        self.student = Projected(backbone, projector)
        self.predictor = mlp(
            (r.projection, r.hidden, r.projection), bias=False, last_bias=False, last_norm=predictor_norm
        )
        self.teacher = teacher.frozen_copy(self.student)

    def views(self) -> views.MultiCrop:
        """The asymmetric pair, bilinear, flipped last."""
        r = self.recipe
        scale = (r.smallest_crop, 1.0)
        return views.MultiCrop(views.byol_pair(r.image_size, scale, interpolation="bilinear", flip_last=True))

    def before_step(self, progress: Progress) -> None:
        """The momentum encoder follows the weights of the step before, then makes the keys."""
        teacher.ema_update(self.teacher, self.student, progress.values["teacher_momentum"])

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """One pass per view and network. Dense: the base encoder's patch tokens, both views, [2B, N, D]."""
        (y1, dense1), (y2, dense2) = (self.student(images) for images in views.images)
        with torch.no_grad():
            k1, k2 = (distributed.gather(self.teacher(images)[0]) for images in views.images)
        q1, q2 = self.predictor(y1), self.predictor(y2)
        first = distributed.rank() * len(q1)
        with torch.autocast(q1.device.type, enabled=False):
            t = self.recipe.temperature
            loss = contrast(q1, k2, t, first) + contrast(q2, k1, t, first)
        return StepOutput(loss, torch.cat([dense1, dense2]))

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Per step, by fractional epochs."""
        r, steps = self.recipe, plan.total_steps
        peak, warmup = r.lr * plan.batch_size / 256, r.warmup_epochs * plan.steps_per_epoch
        return {
            "lr": optim.linear_cosine(peak, 0.0, steps, warmup_steps=warmup),
            "weight_decay": optim.constant(r.weight_decay, steps),
            "teacher_momentum": optim.linspace_cosine(r.teacher_momentum, 1.0, steps),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group, norms, biases and cls token decayed like the rest; LARS takes vectors as they are."""
        named = [*self.student.named_parameters(), *self.predictor.named_parameters(prefix="predictor")]
        if self.recipe.optimizer == "lars":
            return optim.split_by_shape(named)
        return [ParameterGroup("all", [(name, p) for name, p in named if p.requires_grad])]
