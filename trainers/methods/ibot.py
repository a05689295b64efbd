"""iBOT: DINO across views, and the same for each masked patch within a view, with the teacher as tokenizer.

Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", arXiv 2111.07832.
Reference: bytedance/ibot @ da316d8, main_ibot.py, loader.py, models/head.py, models/vision_transformer.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, teacher, views
from dse_monitor.trainers.blocks.centre import Centre
from dse_monitor.trainers.blocks.heads import DINOHead, Prototypes
from dse_monitor.trainers.blocks.masks import block_mask, mask_ratio, random_mask
from dse_monitor.trainers.blocks.objectives import centred_softmax, mean_over_distinct, pair_cross_entropies
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views

GLOBAL_CROPS = 2  # the crops that are masked and that the teacher sees


@dataclass(frozen=True, kw_only=True)
class IBOTRecipe(Recipe):
    """iBOT's numbers: the README's ViT-S/16 command.

    Attributes:
        local_size: side of the local crops, pixels.
        local_crops: local crops per image.
        global_scale: area range of the global crops.
        local_scale: area range of the local crops.
        mask_ratios: shares of hidden patches, one of which is taken for each crop.
        mask_spreads: half-widths of the ranges that each share is drawn from.
        mask_shape: ``block``, or ``random`` for single patches.
        mask_from_epoch: first epoch in which patches are hidden.
        prototypes: output width K for cls tokens.
        patch_prototypes: output width for patches; equal to ``prototypes`` with a shared head.
        head_hidden: hidden width of the head.
        head_bottleneck: width before the prototypes.
        norm_last_layer: keep the prototypes' scale at 1.
        shared_head: cls tokens and patches share the student's prototypes.
        shared_head_teacher: the same in the teacher.
        student_temperature: of the student's softmax.
        warmup_teacher_temperature: teacher temperature of the first epoch.
        teacher_temperature: teacher temperature for cls tokens after its warmup.
        teacher_patch_temperature: teacher temperature for patches after its warmup.
        teacher_temperature_epochs: length of that warmup.
        centre_momentum: of both centres' moving means.
        teacher_momentum: of the teacher's EMA at the start; a cosine takes it to 1.
        cls_weight: weight of the loss across views.
        patch_weight: weight of the loss of masked patches.
        final_lr: where the learning rate ends.
        final_weight_decay: where the weight decay ends.
        clip: largest gradient norm of one parameter tensor; 0 for none.
        freeze_last_layer: epochs during which the prototypes stay.
        drop_path: stochastic depth of the student.
    """

    backbone: str = "vit_small_patch16_224"  # --arch vit_small, --patch_size 16
    batch_size: int = 1024  # README: 16 GPUs x 64
    epochs: int = 800  # README
    warmup_epochs: int = 10  # --warmup_epochs
    lr: float = 5e-4  # --lr, per 256 images
    final_lr: float = 1e-6  # --min_lr
    weight_decay: float = 0.04  # --weight_decay
    final_weight_decay: float = 0.4  # --weight_decay_end
    local_size: int = 96  # DataAugmentationiBOT
    local_crops: int = 10  # README --local_crops_number
    global_scale: tuple[float, float] = (0.25, 1.0)  # README --global_crops_scale
    local_scale: tuple[float, float] = (0.05, 0.25)  # README --local_crops_scale
    mask_ratios: tuple[float, ...] = (0.0, 0.3)  # README --pred_ratio
    mask_spreads: tuple[float, ...] = (0.0, 0.2)  # README --pred_ratio_var
    mask_shape: Literal["block", "random"] = "block"  # --pred_shape (random: rand)
    mask_from_epoch: int = 0  # --pred_start_epoch
    prototypes: int = 8192  # --out_dim
    patch_prototypes: int = 8192  # --patch_out_dim
    head_hidden: int = 2048  # iBOTHead
    head_bottleneck: int = 256  # iBOTHead
    norm_last_layer: bool = False  # README --norm_last_layer
    shared_head: bool = True  # README --shared_head
    shared_head_teacher: bool = True  # --shared_head_teacher
    student_temperature: float = 0.1  # iBOTLoss
    warmup_teacher_temperature: float = 0.04  # --warmup_teacher_temp, --warmup_teacher_patch_temp
    teacher_temperature: float = 0.07  # README --teacher_temp
    teacher_patch_temperature: float = 0.07  # --teacher_patch_temp
    teacher_temperature_epochs: int = 30  # --warmup_teacher_temp_epochs
    centre_momentum: float = 0.9  # iBOTLoss, both centres
    teacher_momentum: float = 0.996  # --momentum_teacher
    cls_weight: float = 1.0  # --lambda1
    patch_weight: float = 1.0  # --lambda2
    clip: float = 3.0  # --clip_grad
    freeze_last_layer: int = 1  # --freeze_last_layer
    drop_path: float = 0.1  # --drop_path

    @classmethod
    def tiny(cls) -> IBOTRecipe:
        """A four-block ViT on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="vit_mini_patch8",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=4e-3,  # x 64 / 256
            local_size=32,
            local_crops=4,
            prototypes=1024,
            patch_prototypes=1024,
            head_hidden=256,
            head_bottleneck=64,
            teacher_temperature_epochs=3,
            teacher_momentum=0.98,  # a tenth of the steps needs a faster teacher
            drop_path=0.0,
        )


def patch_loss(student_logits: Tensor, targets: Tensor, masks: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each masked patch with the teacher's view of it (equation 2).

    Per image the mean over its masked patches; an image without any counts 0 and stays in the mean. The
    authors compute all patches and weight those that are not masked by 0: the same numbers.

    Args:
        student_logits: of the M masked patches, in the order of ``masks``, [M, K2].
        targets: teacher probabilities [M, K2] of the same patches in the unmasked crops.
        masks: bool [V, B, N].
        temperature: student temperature.

    Returns:
        Mean over images and crops.
    """
    log_p = torch.log_softmax(student_logits.float() / temperature, dim=-1)
    error = -(targets * log_p).sum(-1)
    share = 1 / masks.sum(-1, keepdim=True).clamp(min=1)  # [V, B, 1]
    weight = share.expand(masks.shape).flatten()[masked(masks)]
    return (error * weight).sum() / masks[..., 0].numel()


def masked(masks: Tensor) -> Tensor:
    """Where bool masks [..., N] are true, as indices [M] of their flat form."""
    return masks.flatten().nonzero().squeeze(1)


class Losses(NamedTuple):
    """Both unweighted terms and what they were made from.

    Attributes:
        across_views: the cls term.
        masked_patches: the patch term.
        targets: teacher probabilities for cls tokens, [2, B, K].
    """

    across_views: Tensor
    masked_patches: Tensor
    targets: Tensor


def ibot_losses(
    student_cls: Tensor,
    student_patches: Tensor,
    teacher_cls: Tensor,
    teacher_patches: Tensor,
    masks: Tensor,
    centre: Tensor,
    patch_centre: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    teacher_patch_temperature: float,
) -> Losses:
    """One call of the authors' iBOTLoss, with the old centres.

    Args:
        student_cls: [V, B, K], the two global crops first.
        student_patches: of the patches that are masked in the global crops, [M, K2], crop-major.
        teacher_cls: [2, B, K].
        teacher_patches: of the same patches, [M, K2].
        masks: bool [2, B, N].
        centre: [1, K].
        patch_centre: [1, K2], or with further leading ones.
        student_temperature: of both terms.
        teacher_temperature: for cls tokens, of this epoch.
        teacher_patch_temperature: for patches, of this epoch.
    """
    targets = centred_softmax(teacher_cls, centre, teacher_temperature)
    patch_targets = centred_softmax(teacher_patches, patch_centre.flatten(), teacher_patch_temperature)
    return Losses(
        mean_over_distinct(pair_cross_entropies(student_cls, targets, student_temperature)),
        patch_loss(student_patches, patch_targets, masks, student_temperature),
        targets,
    )


class IBOTHead(DINOHead):
    """DINO's head with prototypes for patches beside those for cls tokens; shared, they are one module."""

    def __init__(
        self, width: int, prototypes: int, patch_prototypes: int, *, shared: bool, **options: int | bool
    ) -> None:
        super().__init__(width, prototypes, **options)  # pyright: ignore[reportArgumentType]
        bottleneck = self.last_layer.weight_v.shape[1]
        trainable = self.last_layer.weight_g.requires_grad
        if shared and prototypes != patch_prototypes:
            raise ValueError(
                f"a shared head needs prototypes ({prototypes}) == patch_prototypes ({patch_prototypes})"
            )
        self.last_layer2 = (
            self.last_layer if shared else Prototypes(bottleneck, patch_prototypes, trainable_scale=trainable)
        )

    def tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens [B, 1 + N, D] -> cls logits [B, K] and patch logits [B, N, K2]."""
        x = self.bottleneck(tokens)
        return self.last_layer(x[:, 0]), self.last_layer2(x[:, 1:])

    def masked_tokens(self, tokens: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`tokens`, but patch logits [M, K2] only at indices ``where`` [M] of the B * N patches."""
        x = self.bottleneck(torch.cat([tokens[:, 0], tokens[:, 1:].flatten(0, 1)[where]]))
        return self.last_layer(x[: len(tokens)]), self.last_layer2(x[len(tokens) :])

    def targets(self, units: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of unit vectors [B, 1 + N, bottleneck] what :meth:`masked_tokens` says, and the mean logits [K2].

        That mean is over all patches, masked or not. The last layer is linear, so the mean of its logits is
        the logits of the mean.
        """
        patches = units[:, 1:].flatten(0, 1)
        with torch.autocast(units.device.type, enabled=False):
            mean = self.last_layer2(patches.float().mean(0))
        return self.last_layer(units[:, 0]), self.last_layer2(patches[where]), mean


class Network(nn.Module):
    """Backbone, head, and for the student the embedding that stands for a masked patch."""

    def __init__(self, backbone: VisionTransformer, head: IBOTHead, *, masked: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.masked_embed = nn.Parameter(torch.zeros(1, backbone.embed_dim)) if masked else None

    def forward(self, images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, h, w], masks bool [B, N] -> cls logits, patch logits, patch tokens [B, N, D].

        Patch logits are those of all patches [B, N, K2]; with masks, those of the M masked ones [M, K2].
        """
        embedded = backbones.vit_embed(self.backbone, images, masks, self.masked_embed)
        tokens = backbones.vit_encode(self.backbone, embedded)
        if masks is None:
            return *self.head.tokens(tokens), tokens[:, 1:]
        return *self.head.masked_tokens(tokens, masked(masks)), tokens[:, 1:]

    def targets(self, crops: Sequence[Tensor], where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unmasked crops -> cls logits, patch logits [M, K2] at indices ``where``, mean of all [K2].

        One crop after the other: no gradient needs all of them at once, and half the memory stays in caches.
        """
        each = [self.head.bottleneck(backbones.vit_tokens(self.backbone, images)) for images in crops]
        return self.head.targets(torch.cat(each), where)

    def cls_logits(self, images: Tensor) -> Tensor:
        """Unmasked images -> cls logits [B, K]."""
        return self.head(backbones.features(self.backbone, images).pooled)


@dataclass(frozen=True)
class MaskedCrops:
    """Crops, and a block mask for each global one: ``extra["masks"]`` is bool [2, grid, grid].

    Attributes:
        crops: the usual multi-crop.
        grid: patches per side of a global crop.
        ratios: see ``IBOTRecipe.mask_ratios``.
        spreads: see ``IBOTRecipe.mask_spreads``.
        shape: see ``IBOTRecipe.mask_shape``.
    """

    crops: views.MultiCrop
    grid: int
    ratios: tuple[float, ...]
    spreads: tuple[float, ...]
    shape: Literal["block", "random"] = "block"

    def __call__(self, image: Image.Image) -> Views:
        """Views of an RGB image."""
        draw = block_mask if self.shape == "block" else random_mask
        masks = np.stack(
            [draw(self.grid, self.grid, mask_ratio(self.ratios, self.spreads)) for _ in range(GLOBAL_CROPS)]
        )
        return Views(self.crops(image).images, {"masks": torch.from_numpy(masks)})


class IBOT(Method):
    """Image BERT pretraining with an online tokenizer."""

    recipe_type = IBOTRecipe
    evaluated = "teacher.backbone."
    teachers = ("teacher",)
    differences = (
        "Masks are drawn for global crops only; the released loader draws them for local crops as well, "
        "where nothing reads them. ViTs only: the released code can train Swins too. Centres move after the "
        "step instead of after the loss: the same numbers, and micro-batches add up."
    )

    def __init__(self, recipe: IBOTRecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        self.backbone_spec = backbones.describe(recipe.backbone, recipe.image_size, ("vit",), cls_token=True)
        ratios, spreads = recipe.mask_ratios, recipe.mask_spreads
        one_each = spreads * len(ratios) if len(spreads) == 1 else spreads
        if len(one_each) != len(ratios) or any(
            ratio < own for ratio, own in zip(ratios, one_each, strict=True)
        ):
            raise ValueError(
                f"mask_spreads {spreads} do not fit mask_ratios {ratios}: give one for each, or one for all, "
                "none of them above its ratio"
            )
        self.student = self._network(shared=recipe.shared_head, masked=True, drop_path_rate=recipe.drop_path)
        self.teacher = self._network(shared=recipe.shared_head_teacher, masked=False).requires_grad_(False)
        # with one shared and one separate head, the patch layer is written last and so wins, as released
        self.teacher.load_state_dict(self.student.state_dict(), strict=False)
        patch: tuple[int, int] = self.student.backbone.patch_embed.patch_size  # pyright: ignore[reportAssignmentType]
        self.grid = recipe.image_size // patch[0]
        self.centre = Centre(1, recipe.prototypes, momentum=recipe.centre_momentum)
        self.patch_centre = Centre(1, 1, recipe.patch_prototypes, momentum=recipe.centre_momentum)

    def _network(self, *, shared: bool, masked: bool, **options: float) -> Network:
        r = self.recipe
        backbone = backbones.build(self.backbone_spec, **options)
        assert isinstance(backbone, VisionTransformer)
        assert backbone.cls_token is not None
        nn.init.trunc_normal_(backbone.cls_token, std=0.02)
        head = IBOTHead(
            self.backbone_spec.width,
            r.prototypes,
            r.patch_prototypes,
            shared=shared,
            hidden=r.head_hidden,
            bottleneck=r.head_bottleneck,
            norm_last_layer=r.norm_last_layer,
        )
        return Network(backbone, head, masked=masked)

    def views(self) -> MaskedCrops:
        """Two global crops with masks, then the local ones."""
        r = self.recipe
        return MaskedCrops(views.dino_views(r), self.grid, r.mask_ratios, r.mask_spreads, r.mask_shape)

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """Dense: the student's patch tokens of the masked global crops, after the final norm, [2B, N, D]."""
        r, values = self.recipe, progress.values
        crops, masks = torch.cat(views.images[:GLOBAL_CROPS]), views.extra["masks"].flatten(2)  # [B, 2, N]
        masks = masks.transpose(0, 1) & (progress.epoch >= r.mask_from_epoch)
        cls, patches, dense = self.student(crops, masks.flatten(0, 1))
        if len(views.images) > GLOBAL_CROPS:
            cls = torch.cat([cls, self.student.cls_logits(torch.cat(views.images[GLOBAL_CROPS:]))])
        with torch.no_grad():
            teacher_cls, teacher_patches, mean = self.teacher.targets(
                views.images[:GLOBAL_CROPS], masked(masks)
            )
        losses = ibot_losses(
            cls.unflatten(0, (len(views.images), -1)),
            patches,
            teacher_cls.unflatten(0, (GLOBAL_CROPS, -1)),
            teacher_patches,
            masks,
            self.centre.value,
            self.patch_centre.value,
            student_temperature=r.student_temperature,
            teacher_temperature=values["teacher_temperature"],
            teacher_patch_temperature=values["teacher_patch_temperature"],
        )
        self.centre.observe(teacher_cls)
        self.patch_centre.observe(mean[None])
        loss = r.cls_weight * losses.across_views + r.patch_weight * losses.masked_patches
        logs = {"cls_loss": losses.across_views.detach(), "patch_loss": losses.masked_patches.detach()}
        return StepOutput(loss, dense, logs)

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Per iteration, but the temperatures per epoch."""
        r = self.recipe
        return {
            **optim.distillation(r, plan),
            "teacher_patch_temperature": optim.epoch_table(
                r.warmup_teacher_temperature,
                r.teacher_patch_temperature,
                r.teacher_temperature_epochs,
                plan.epochs,
                plan.steps_per_epoch,
                delay=r.mask_from_epoch,
            ),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """No decay on biases and one-dimensional parameters; the masked embedding is decayed."""
        return optim.split_by_decay(self.student.named_parameters())

    def after_backward(self, progress: Progress) -> None:
        """Clip each tensor by itself; leave the prototypes out of the step while they are frozen."""
        frozen = progress.epoch < self.recipe.freeze_last_layer
        optim.clip_and_freeze(self.student, self.recipe.clip, "last_layer" if frozen else None)

    def after_step(self, progress: Progress) -> None:
        """Teacher and centres follow; its own patch prototypes stay where the student's are shared."""
        momentum = progress.values["teacher_momentum"]
        teacher.ema_update(self.teacher, self.student, momentum, common_only=True)
        self.centre.update()
        self.patch_centre.update()
