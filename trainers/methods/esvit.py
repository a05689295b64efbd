"""EsViT: DINO on a multi-stage network, for the whole view and for each region matched across views.

Li et al., "Efficient Self-supervised Vision Transformers for Representation Learning", arXiv 2106.09785.
Reference: microsoft/esvit @ 2d6becd, main_esvit.py, models/swin_transformer.py, datasets/build.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, teacher, views
from dse_monitor.trainers.blocks.centre import Centre
from dse_monitor.trainers.blocks.heads import DINOHead
from dse_monitor.trainers.blocks.networks import build_without_zero_init
from dse_monitor.trainers.blocks.objectives import centred_softmax, mean_over_distinct, pair_cross_entropies
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class EsViTRecipe(Recipe):
    """EsViT's numbers: the README's Swin-T command with the region loss.

    Attributes:
        regions: whether the region loss is on (half of the loss then).
        local_size: side of the local crops, pixels.
        local_crops: local crops per image.
        global_scale: area range of the global crops.
        local_scale: area range of the local crops.
        mixed_views: student views whose images are mixed with one another; only without the region loss.
        mixup: alpha of mixup in those views.
        cutmix: alpha of CutMix in those views.
        prototypes: output width K of both heads.
        head_hidden: hidden width of the heads.
        head_bottleneck: width before the prototypes.
        norm_last_layer: keep the prototypes' scale at 1.
        student_temperature: of the student's softmax.
        warmup_teacher_temperature: teacher temperature of the first epoch, both levels.
        teacher_temperature: teacher temperature after its warmup, both levels.
        teacher_temperature_epochs: length of that warmup.
        centre_momentum: of both centres' moving means.
        teacher_momentum: of the teacher's EMA at the start; a cosine takes it to 1.
        final_lr: where the learning rate ends.
        final_weight_decay: where the weight decay ends.
        clip: largest gradient norm of one parameter tensor; 0 for none.
        freeze_last_layer: epochs during which the prototypes stay.
        drop_path: stochastic depth of the student.
    """

    backbone: str = "swin_tiny_patch4_window7_224"  # --arch swin_tiny and its yaml
    batch_size: int = 512  # README: 16 GPUs x 32
    epochs: int = 300  # README
    warmup_epochs: int = 10  # --warmup_epochs
    lr: float = 5e-4  # --lr, per 256 images
    final_lr: float = 1e-6  # --min_lr
    weight_decay: float = 0.04  # --weight_decay
    final_weight_decay: float = 0.4  # --weight_decay_end
    regions: bool = True  # README --use_dense_prediction
    local_size: int = 96  # --local_crops_size
    local_crops: int = 8  # --local_crops_number
    global_scale: tuple[float, float] = (0.4, 1.0)  # --global_crops_scale
    local_scale: tuple[float, float] = (0.05, 0.4)  # --local_crops_scale
    mixed_views: int = 0  # --use_mixup false (if true, --num_mixup_views 10)
    mixup: float = 0.8  # --mixup
    cutmix: float = 1.0  # --cutmix
    prototypes: int = 65536  # --out_dim
    head_hidden: int = 2048  # DINOHead
    head_bottleneck: int = 256  # DINOHead
    norm_last_layer: bool = False  # README --norm_last_layer
    student_temperature: float = 0.1  # DDINOLoss
    warmup_teacher_temperature: float = 0.04  # --warmup_teacher_temp
    teacher_temperature: float = 0.07  # README --teacher_temp
    teacher_temperature_epochs: int = 30  # README --warmup_teacher_temp_epochs
    centre_momentum: float = 0.9  # DDINOLoss, both centres
    teacher_momentum: float = 0.996  # --momentum_teacher
    clip: float = 3.0  # --clip_grad
    freeze_last_layer: int = 1  # --freeze_last_layer
    drop_path: float = 0.1  # DROP_PATH_RATE of the yaml

    @classmethod
    def tiny(cls) -> EsViTRecipe:
        """A three-stage Swin on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="swin_mini_patch4",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=4e-3,  # x 64 / 256
            local_size=32,
            local_crops=4,
            prototypes=1024,
            head_hidden=256,
            head_bottleneck=64,
            teacher_temperature_epochs=3,
            teacher_momentum=0.98,  # a tenth of the steps needs a faster teacher
            drop_path=0.0,
        )


def view_pairs(
    student_logits: Tensor, targets: Tensor, temperature: float, mixes: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each teacher view with each student view, mean over the batch: [T, V].

    Args:
        student_logits: [V, B, K].
        targets: teacher probabilities [T, B, K].
        temperature: the student's.
        mixes: [V, B, B]; entry (v, a, b) is how much the teacher's image a counts for the student's image b.
            None for images that were not mixed.
    """
    if mixes is None:
        return pair_cross_entropies(student_logits, targets, temperature)
    log_p = F.log_softmax(student_logits.float() / temperature, dim=-1)
    return -torch.einsum("vab,tak,vbk->tv", mixes.to(log_p), targets, log_p) / student_logits.shape[1]


def match_regions(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """For each student region [B, N, D] the most similar teacher region [B, M, D] by cosine: int64 [B, N]."""
    student, teacher_ = (
        F.normalize(x.detach().float(), dim=-1) for x in (student_features, teacher_features)
    )
    return (student @ teacher_.mT).argmax(-1)


def region_pairs(
    student_logits: Sequence[Tensor],
    student_features: Sequence[Tensor],
    targets: Tensor,
    teacher_features: Tensor,
    temperature: float,
) -> Tensor:
    """Cross-entropy of each student region with its match, for pairs of different views: [T, V] (eq. 3).

    Args:
        student_logits: V tensors [B, N_v, K].
        student_features: V tensors [B, N_v, D], the encoder's normalised tokens; no gradient.
        targets: teacher probabilities [T, B, N, K].
        teacher_features: [T, B, N, D].
        temperature: the student's.

    Returns:
        Mean over regions and images; 0 where teacher and student view are the same.
    """
    rows = []
    for t, (target, features) in enumerate(zip(targets, teacher_features, strict=True)):
        row = []
        for v, (logits, own) in enumerate(zip(student_logits, student_features, strict=True)):
            if v == t:
                row.append(logits.new_zeros(()))
                continue
            matches = match_regions(own, features)[..., None]
            matched = target.gather(1, matches.expand(-1, -1, target.shape[-1]))
            row.append(-(matched * F.log_softmax(logits.float() / temperature, dim=-1)).sum(-1).mean())
        rows.append(torch.stack(row))
    return torch.stack(rows)


class Network(nn.Module):
    """Backbone, a head for views, and one for regions."""

    def __init__(self, backbone: nn.Module, head: DINOHead, head_dense: DINOHead | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.head_dense = head_dense

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Crops, equal sizes adjacent -> view logits [V * B, K]; by crop region logits and tokens."""
        sizes = list(dict.fromkeys(image.shape[-1] for image in images))
        pooled, tokens = [], []
        for size in sizes:
            crops = [image for image in images if image.shape[-1] == size]
            features = backbones.features(self.backbone, torch.cat(crops))
            pooled.append(features.pooled)
            tokens.append(features.dense.unflatten(0, (len(crops), -1)))
        regions = [] if self.head_dense is None else [x for group in tokens for x in self.head_dense(group)]
        return self.head(torch.cat(pooled)), regions, [x for group in tokens for x in group]


class EsViT(Method):
    """Efficient self-supervised vision transformers."""

    recipe_type = EsViTRecipe
    evaluated = "teacher.backbone."
    teachers = ("teacher",)
    differences = (
        "Works without local crops, where the released region loss fails, and clips in every precision, "
        "where the released float32 path refers to a name that does not exist. Centres move after the step "
        "instead of after the loss: the same numbers, and micro-batches add up. Images are mixed within the "
        "batch by timm, for the student only; released, timm mixes in place, so that the teacher sees mixed "
        "crops, too. Swin and convolutional networks only: the released code also trains plain ViTs, CvT and "
        "Longformer. Where an image size does not halve evenly from stage to stage, timm rounds up when it "
        "makes the windows and the released code down; 224 pixels do."
    )

    def __init__(self, recipe: EsViTRecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        if recipe.regions and recipe.mixed_views:
            raise ValueError("mixed_views needs regions=False: regions of mixed images have no counterpart")
        # the authors' Swin norms have 1e-6 where timm's have 1e-5
        self.backbone_spec = backbones.describe(
            recipe.backbone, recipe.image_size, ("swin", "conv"), norm_eps=1e-6
        )
        self.batch_coupled = "batch norm" if self.backbone_spec.family == "conv" else ""
        # released ResNets are torchvision's, which have no stochastic depth
        conv = self.backbone_spec.family == "conv"
        self.student = self._network(**{} if conv else {"drop_path_rate": recipe.drop_path})
        self.teacher = self._network().requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.centre = Centre(1, recipe.prototypes, momentum=recipe.centre_momentum)
        self.region_centre = Centre(1, recipe.prototypes, momentum=recipe.centre_momentum)

    def _network(self, **options: float) -> Network:
        r = self.recipe
        heads = [
            DINOHead(
                self.backbone_spec.width,
                r.prototypes,
                hidden=r.head_hidden,
                bottleneck=r.head_bottleneck,
                norm_last_layer=r.norm_last_layer,
            )
            for _ in range(1 + r.regions)
        ]
        return Network(
            build_without_zero_init(self.backbone_spec, **options),
            heads[0],
            heads[1] if r.regions else None,
        )

    def views(self) -> views.MultiCrop:
        """DINO's crops."""
        return views.dino_views(self.recipe)

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """Dense: the student's tokens of both global crops, after the final norm, [2B, N, D] crop-major."""
        r, tau = self.recipe, progress.values["teacher_temperature"]
        images, mixes = self._mixed(views.images)
        logits, regions, tokens = self.student(images)
        with torch.no_grad():
            teacher_logits, teacher_regions, teacher_tokens = self.teacher(views.images[:2])
        targets = centred_softmax(teacher_logits, self.centre.value, tau).unflatten(0, (2, -1))
        self.centre.observe(teacher_logits)
        with torch.autocast(logits.device.type, enabled=False):
            pairs = view_pairs(logits.unflatten(0, (len(images), -1)), targets, r.student_temperature, mixes)
            loss = mean_over_distinct(pairs)
            logs = {"view_loss": loss.detach()}
            if r.regions:
                joined = torch.stack(teacher_regions)
                region_targets = centred_softmax(joined, self.region_centre.value, tau)
                self.region_centre.observe(joined.flatten(0, 1))
                region_loss = mean_over_distinct(
                    region_pairs(
                        regions, tokens, region_targets, torch.stack(teacher_tokens), r.student_temperature
                    )
                )
                loss = (loss + region_loss) / 2
                logs["region_loss"] = region_loss.detach()
        return StepOutput(loss, torch.cat(tokens[:2]), logs)

    def _mixed(self, images: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The student's views, the first of them mixed within the batch, and what each image became."""
        r, batch = self.recipe, len(images[0])
        if not r.mixed_views:
            return images, None
        if batch % 2:
            raise ValueError(f"mixed_views needs an even number of images in a micro-batch, got {batch}")
        mix = Mixup(r.mixup, r.cutmix, label_smoothing=0.0, num_classes=batch)
        out, mixes = [], []
        for v, view in enumerate(images):
            own = torch.arange(batch, device=view.device)
            if v < r.mixed_views:
                view, share = mix(view.clone(), own)
            else:
                share = F.one_hot(own, batch).float()
            out.append(view)
            mixes.append(share)
        return out, torch.stack(mixes)

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Per iteration, but the temperature per epoch."""
        return optim.distillation(self.recipe, plan)

    def parameter_groups(self) -> list[ParameterGroup]:
        """No decay on biases and one-dimensional parameters; position bias tables are decayed."""
        return optim.split_by_decay(self.student.named_parameters())

    def after_backward(self, progress: Progress) -> None:
        """Clip each tensor by itself; leave both heads' prototypes out of the step while they are frozen."""
        frozen = progress.epoch < self.recipe.freeze_last_layer
        optim.clip_and_freeze(self.student, self.recipe.clip, "last_layer" if frozen else None)

    def after_step(self, progress: Progress) -> None:
        """Teacher and centres follow."""
        teacher.ema_update(self.teacher, self.student, progress.values["teacher_momentum"])
        self.centre.update()
        self.region_centre.update()
