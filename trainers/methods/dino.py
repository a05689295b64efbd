"""DINO: on every crop, a student matches what its EMA teacher says of another, global crop.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294.
Reference: facebookresearch/dino @ 7c446df, main_dino.py, vision_transformer.py, utils.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, teacher, views
from dse_monitor.trainers.blocks.centre import Centre, updated_centre
from dse_monitor.trainers.blocks.heads import DINOHead
from dse_monitor.trainers.blocks.networks import build_without_zero_init, multicrop_features
from dse_monitor.trainers.blocks.objectives import centred_softmax, mean_over_distinct, pair_cross_entropies
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class DINORecipe(Recipe):
    """DINO's numbers: the defaults of main_dino.py, ViT-S/16; ``boosted`` and ``resnet50`` are the README's.

    Attributes:
        local_size: side of the local crops, pixels.
        local_crops: local crops per image.
        global_scale: area range of the global crops.
        local_scale: area range of the local crops.
        prototypes: output width K.
        head_hidden: hidden width of the head.
        head_bottleneck: width before the prototypes.
        norm_last_layer: keep the prototypes' scale at 1.
        student_temperature: of the student's softmax.
        warmup_teacher_temperature: teacher temperature of the first epoch.
        teacher_temperature: teacher temperature after its warmup.
        teacher_temperature_epochs: length of that warmup.
        centre_momentum: of the centre's moving mean.
        teacher_momentum: of the teacher's EMA at the start; a cosine takes it to 1.
        final_lr: where the learning rate ends.
        final_weight_decay: where the weight decay ends.
        clip: largest gradient norm of one parameter tensor; 0 for none.
        freeze_last_layer: epochs during which the prototypes stay.
        drop_path: stochastic depth of the student; convolutional networks have none.
    """

    presets: ClassVar[tuple[str, ...]] = ("tiny", "boosted", "resnet50")

    backbone: str = "vit_small_patch16_224"  # --arch vit_small, --patch_size 16
    image_size: int = 224  # DataAugmentationDINO
    batch_size: int = 1024  # README: 16 GPUs x 64
    epochs: int = 100  # --epochs
    warmup_epochs: int = 10  # --warmup_epochs
    lr: float = 5e-4  # --lr, per 256 images
    final_lr: float = 1e-6  # --min_lr
    weight_decay: float = 0.04  # --weight_decay
    final_weight_decay: float = 0.4  # --weight_decay_end
    local_size: int = 96  # DataAugmentationDINO
    local_crops: int = 8  # --local_crops_number
    global_scale: tuple[float, float] = (0.4, 1.0)  # --global_crops_scale
    local_scale: tuple[float, float] = (0.05, 0.4)  # --local_crops_scale
    prototypes: int = 65536  # --out_dim
    head_hidden: int = 2048  # DINOHead
    head_bottleneck: int = 256  # DINOHead
    norm_last_layer: bool = True  # --norm_last_layer
    student_temperature: float = 0.1  # DINOLoss
    warmup_teacher_temperature: float = 0.04  # --warmup_teacher_temp
    teacher_temperature: float = 0.04  # --teacher_temp
    teacher_temperature_epochs: int = 0  # --warmup_teacher_temp_epochs
    centre_momentum: float = 0.9  # DINOLoss
    teacher_momentum: float = 0.996  # --momentum_teacher (0.9995 recommended at batch 256)
    clip: float = 3.0  # --clip_grad
    freeze_last_layer: int = 1  # --freeze_last_layer
    drop_path: float = 0.1  # --drop_path_rate

    @classmethod
    def tiny(cls) -> DINORecipe:
        """A four-block ViT on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="vit_mini_patch8",
            image_size=64,
            batch_size=32,
            epochs=12,
            warmup_epochs=1,
            lr=1.2e-2,  # x 32 / 256; with less, a few hundred steps stay on the first plateau
            final_weight_decay=0.04,
            local_size=32,
            local_crops=2,
            global_scale=(0.5, 1.0),  # a smaller crop of 64 px shows too little
            local_scale=(0.2, 0.5),
            warmup_teacher_temperature=0.02,  # sharper targets make up for few steps
            teacher_temperature=0.02,
            prototypes=256,
            head_hidden=256,
            head_bottleneck=64,
            teacher_momentum=0.99,  # few steps need a faster teacher
            drop_path=0.0,
        )

    @classmethod
    def boosted(cls) -> DINORecipe:
        """The README's command for better performance, ViT-S/16, 300 epochs."""
        return dataclasses.replace(
            cls(),
            epochs=300,  # --epochs
            norm_last_layer=False,  # --norm_last_layer
            teacher_temperature=0.07,  # --teacher_temp
            teacher_temperature_epochs=30,  # --warmup_teacher_temp_epochs
        )

    @classmethod
    def resnet50(cls) -> DINORecipe:
        """The README's command for a ResNet-50, eight GPUs."""
        return dataclasses.replace(
            cls(),
            backbone="resnet50",  # --arch
            batch_size=512,  # 8 GPUs x 64
            optimizer="sgd",  # --optimizer
            lr=0.03,  # --lr, per 256 images
            weight_decay=1e-4,  # --weight_decay
            final_weight_decay=1e-4,  # --weight_decay_end
            global_scale=(0.14, 1.0),  # --global_crops_scale
            local_scale=(0.05, 0.14),  # --local_crops_scale
        )


def dino_loss(student_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy over all pairs of teacher crop i and student crop v != i (equation 3 of the paper).

    Args:
        student_logits: [V, B, K], the T global crops first.
        targets: teacher probabilities [T, B, K] from :func:`objectives.centred_softmax`.
        temperature: the student's.

    Returns:
        Scalar; there are T * (V - 1) pairs.
    """
    return mean_over_distinct(pair_cross_entropies(student_logits, targets, temperature))


def loss_and_centre(
    student_logits: Tensor,
    teacher_logits: Tensor,
    centre: Tensor,
    *,
    crops: int,
    student_temperature: float,
    teacher_temperature: float,
    centre_momentum: float,
) -> tuple[Tensor, Tensor]:
    """One call of the authors' DINOLoss on one process: the loss with the old centre, then the new centre.

    Args:
        student_logits: [V * B, K], crop-major.
        teacher_logits: [2 * B, K], crop-major.
        centre: [1, K].
        crops: V.
        student_temperature: tau_s.
        teacher_temperature: tau_t of this epoch.
        centre_momentum: of the moving mean.

    Returns:
        The loss and the centre [1, K] for the next call.
    """
    targets = centred_softmax(teacher_logits, centre, teacher_temperature).unflatten(0, (2, -1))
    loss = dino_loss(student_logits.unflatten(0, (crops, -1)), targets, student_temperature)
    return loss, updated_centre(
        centre, teacher_logits.detach().float().mean(0, keepdim=True), centre_momentum
    )


class Network(nn.Module):
    """Backbone and head; equal crop sizes share a backbone pass, all crops share the head's."""

    def __init__(self, backbone: nn.Module, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Crops [B, 3, h, w], equal sizes adjacent -> logits [V * B, K], first size's tokens [B', N, D]."""
        pooled, dense = multicrop_features(self.backbone, images)
        return self.head(pooled), dense


class DINO(Method):
    """Self-distillation with no labels."""

    recipe_type = DINORecipe
    evaluated = "teacher.backbone."
    teachers = ("teacher",)
    differences = (
        "The centre moves after the step instead of after the loss: the same numbers, and micro-batches add "
        "up to the large batch. Weight normalisation of the prototypes is written out under its released "
        "names, since torch has deprecated that hook."
    )

    def __init__(self, recipe: DINORecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        spec = self.backbone_spec = backbones.describe(recipe.backbone, recipe.image_size, cls_token=True)
        # released convolutional networks are torchvision's, which have no stochastic depth
        options = {} if spec.family == "conv" else {"drop_path_rate": recipe.drop_path}
        self.student = self._network(**options)
        self.teacher = self._network().requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.centre = Centre(1, recipe.prototypes, momentum=recipe.centre_momentum)
        # batch norm inside the backbone couples the images of a batch; a ViT has none
        self.batch_coupled = "batch norm" if spec.family == "conv" else ""

    def _network(self, **options: float) -> Network:
        r = self.recipe
        backbone = build_without_zero_init(self.backbone_spec, **options)
        if self.backbone_spec.family == "vit":
            nn.init.trunc_normal_(backbone.cls_token, std=0.02)  # pyright: ignore[reportArgumentType]
        head = DINOHead(
            self.backbone_spec.width,
            r.prototypes,
            hidden=r.head_hidden,
            bottleneck=r.head_bottleneck,
            norm_last_layer=r.norm_last_layer,
        )
        return Network(backbone, head)

    def views(self) -> views.MultiCrop:
        """Two global crops, then the local ones."""
        return views.dino_views(self.recipe)

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """Dense: the student's tokens of both global crops, after the final norm, [2B, N, D] crop-major."""
        logits, dense = self.student(views.images)
        crops = views.images[:2]
        # One after the other: no gradient needs both at once. Batch norms, though, see both together.
        passes = [crops] if self.batch_coupled else [[crop] for crop in crops]
        with torch.no_grad():
            teacher_logits = torch.cat([self.teacher(some)[0] for some in passes])
        targets = centred_softmax(teacher_logits, self.centre.value, progress.values["teacher_temperature"])
        self.centre.observe(teacher_logits)
        loss = dino_loss(
            logits.unflatten(0, (len(views.images), -1)),
            targets.unflatten(0, (2, -1)),
            self.recipe.student_temperature,
        )
        entropy = torch.special.entr(targets).sum(-1).mean()
        return StepOutput(loss, dense, {"teacher_entropy": entropy})

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Per iteration, but the temperature per epoch."""
        return optim.distillation(self.recipe, plan)

    def parameter_groups(self) -> list[ParameterGroup]:
        """No decay on biases and one-dimensional parameters."""
        return optim.split_by_decay(self.student.named_parameters())

    def after_backward(self, progress: Progress) -> None:
        """Clip each tensor by itself; then leave the prototypes out of the step while they are frozen."""
        frozen = progress.epoch < self.recipe.freeze_last_layer
        optim.clip_and_freeze(self.student, self.recipe.clip, "last_layer" if frozen else None)

    def after_step(self, progress: Progress) -> None:
        """Teacher and centre follow."""
        teacher.ema_update(self.teacher, self.student, progress.values["teacher_momentum"])
        self.centre.update()
