"""I-JEPA: from one visible block, predict the representations of four hidden ones.

Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
arXiv 2301.08243. Reference: facebookresearch/ijepa, branch main: src/train.py, src/helper.py,
src/models/vision_transformer.py, src/utils/schedulers.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, teacher, views
from dse_monitor.trainers.blocks.masks import MultiBlock
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class IJEPARecipe(Recipe):
    """I-JEPA's numbers: configs/in1k_vith14_ep300.yaml, and the paper's length and warmup for ViT-Base/16.

    Attributes:
        start_lr: learning rate at the start of the warmup; like ``lr`` it is not scaled by the batch.
        final_lr: where the learning rate ends.
        final_weight_decay: where the weight decay ends.
        teacher_momentum: of the target encoder at the start; a line takes it to ``final_teacher_momentum``.
        final_teacher_momentum: at the end.
        schedule_stretch: factor on the steps that the schedules are spread over.
        predictor_width: width of the predictor.
        predictor_depth: its blocks.
        crop_scale: area range of the one view.
        flip: probability of a horizontal flip.
        colour: strength of colour jitter and greyscale; 0 for neither.
        blur: probability of a Gaussian blur.
        targets: target blocks per image.
        contexts: context blocks per image.
        target_scale: range of a target's share of the grid.
        target_aspect: range of its aspect ratio.
        context_scale: range of the context's share of the grid.
        min_keep: a block must show strictly more patches than this.
        allow_overlap: whether a context may show what a target hides.
    """

    backbone: str = "vit_base_patch16_224"  # model_name, patch_size
    batch_size: int = 2048  # 16 GPUs x 128
    epochs: int = 600  # paper, ViT-B (optimization.epochs: 300)
    warmup_epochs: int = 15  # paper (optimization.warmup: 40)
    lr: float = 1e-3  # optimization.lr
    start_lr: float = 1e-4  # paper (optimization.start_lr: 2e-4)
    final_lr: float = 1e-6  # optimization.final_lr
    weight_decay: float = 0.04  # optimization.weight_decay
    final_weight_decay: float = 0.4  # optimization.final_weight_decay
    teacher_momentum: float = 0.996  # optimization.ema
    final_teacher_momentum: float = 1.0  # optimization.ema
    schedule_stretch: float = 1.0  # optimization.ipe_scale
    predictor_width: int = 384  # meta.pred_emb_dim
    predictor_depth: int = 6  # meta.pred_depth (12 for ViT-L and ViT-H)
    crop_scale: tuple[float, float] = (0.3, 1.0)  # data.crop_scale
    flip: float = 0.0  # data.use_horizontal_flip (true: 0.5)
    colour: float = 0.0  # data.use_color_distortion, color_jitter_strength
    blur: float = 0.0  # data.use_gaussian_blur (true: 0.5)
    targets: int = 4  # mask.num_pred_masks
    contexts: int = 1  # mask.num_enc_masks
    target_scale: tuple[float, float] = (0.15, 0.2)  # mask.pred_mask_scale
    target_aspect: tuple[float, float] = (0.75, 1.5)  # mask.aspect_ratio
    context_scale: tuple[float, float] = (0.85, 1.0)  # mask.enc_mask_scale
    min_keep: int = 10  # mask.min_keep
    allow_overlap: bool = False  # mask.allow_overlap

    presets: ClassVar[tuple[str, ...]] = ("tiny", "vit_huge")

    @classmethod
    def tiny(cls) -> IJEPARecipe:
        """A four-block ViT and a two-block predictor on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="vit_mini_patch8",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            start_lr=2e-4,
            predictor_width=48,
            predictor_depth=2,
            teacher_momentum=0.98,  # a tenth of the steps needs a faster target
            min_keep=4,  # an 8 x 8 grid has targets of nine patches
        )

    @classmethod
    def vit_huge(cls) -> IJEPARecipe:
        """The released configuration as it stands: ViT-Huge/14, 300 epochs."""
        return dataclasses.replace(
            cls(),
            backbone="vit_huge_patch14_224",
            epochs=300,
            warmup_epochs=40,
            start_lr=2e-4,
            predictor_depth=12,
        )


def gather_patches(tokens: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """The tokens [B, N, D] at each mask's indices [B, K], mask-major: [masks * B, K, D]."""
    return torch.cat([tokens.gather(1, m[..., None].expand(-1, -1, tokens.shape[-1])) for m in masks])


def repeat_blocks(x: Tensor, blocks: int, times: int) -> Tensor:
    """Each of the ``blocks`` batches in x [blocks * B, ...] repeated ``times`` times in a row."""
    return x.unflatten(0, (blocks, -1)).repeat_interleave(times, 0).flatten(0, 1)


def make_targets(tokens: Tensor, targets: Sequence[Tensor], contexts: int) -> Tensor:
    """What the predictor must hit: target-encoder tokens, normalised over features once more without affine.

    Args:
        tokens: [B, N, D], after the target encoder's own final norm.
        targets: index masks [B, Kp].
        contexts: number of context masks.

    Returns:
        [targets * contexts * B, Kp, D], target-major, then context, then image; no gradient.
    """
    normal = F.layer_norm(tokens.detach().float(), tokens.shape[-1:])
    return repeat_blocks(gather_patches(normal, targets), len(targets), contexts)


def prediction_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Smooth L1 (beta 1), mean over everything: both [rows, Kp, D]."""
    return F.smooth_l1_loss(predictions.float(), targets)


class Predictor(nn.Module):
    """A narrow transformer: context tokens in, tokens at the targets' places out."""

    def __init__(
        self, width: int, grid: int, inner: int, depth: int, heads: int, *, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
        self.pos_embed = nn.Parameter(backbones.sincos_positions(inner, grid), requires_grad=False)
        options = {"mlp_ratio": mlp_ratio, "qkv_bias": True, "norm_layer": LayerNorm}
        self.blocks = nn.Sequential(*[Block(inner, heads, **options) for _ in range(depth)])
        self.norm = LayerNorm(inner)
        self.proj = nn.Linear(inner, width)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, contexts: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Context tokens [contexts * B, Ke, D] -> [targets * contexts * B, Kp, D], ordered as the targets.

        Args:
            tokens: the encoder's output at the context masks, mask-major.
            contexts: index masks [B, Ke].
            targets: index masks [B, Kp].
        """
        positions = self.pos_embed.expand(len(contexts[0]), -1, -1)
        x = self.embed(tokens) + gather_patches(positions, contexts)
        places = repeat_blocks(gather_patches(positions, targets), len(targets), len(contexts))
        x = torch.cat([x.repeat(len(targets), 1, 1), (self.mask_token + places).to(x.dtype)], 1)
        return self.proj(self.norm(self.blocks(x))[:, tokens.shape[1] :])


def initialise(module: nn.Module) -> None:
    """The authors' start: helper.init_model undoes the rescaling by depth that their constructors do."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if isinstance(module, VisionTransformer):
        grid = math.isqrt(module.patch_embed.num_patches)
        assert module.pos_embed is not None
        module.pos_embed.data.copy_(backbones.sincos_positions(module.embed_dim, grid))
        module.pos_embed.requires_grad_(False)


class Student(nn.Module):
    """Context encoder and predictor."""

    def __init__(self, backbone: VisionTransformer, predictor: Predictor) -> None:
        super().__init__()
        self.backbone = backbone
        self.predictor = predictor

    def forward(
        self, images: Tensor, contexts: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Images [B, 3, h, w] -> context tokens [contexts * B, Ke, D] and predictions."""
        embedded = gather_patches(backbones.vit_embed(self.backbone, images), contexts)
        tokens = backbones.vit_encode(self.backbone, embedded)
        return tokens, self.predictor(tokens, contexts, targets)


class IJEPA(Method):
    """Image joint-embedding prediction."""

    recipe_type = IJEPARecipe
    teachers = ("teacher",)
    differences = (
        "The network is ViT-B/16, as the DSE paper trains it; no configuration was released for it, so that "
        "epochs, warmup and its first learning rate are the paper's and all else is the ViT-H/14 "
        "configuration's (`--preset vit_huge`). A block that can never show more than min_keep "
        "patches is refused with a message; released, the search for its place does not end. Block sizes "
        "follow the number of the micro-batch, so that workers and interruptions change nothing. A schedule "
        "shorter than the run (`schedule_stretch` below 1) keeps its end; released, the momentum runs out."
    )

    def __init__(self, recipe: IJEPARecipe) -> None:
        super().__init__(recipe)
        self.recipe = r = recipe
        spec = self.backbone_spec = backbones.describe(
            r.backbone, r.image_size, ("vit",), class_token=False, global_pool="avg", fc_norm=False
        )
        backbone = backbones.build(spec)
        assert isinstance(backbone, VisionTransformer)
        assert spec.num_heads is not None
        self.grid = r.image_size // backbone.patch_embed.patch_size[0]
        predictor = Predictor(spec.width, self.grid, r.predictor_width, r.predictor_depth, spec.num_heads)
        initialise(backbone)
        initialise(predictor)
        self.student = Student(backbone, predictor)
        self.teacher = nn.ModuleDict({"backbone": teacher.frozen_copy(backbone)})

    def views(self) -> views.MultiCrop:
        """One crop, neither flipped nor coloured unless the recipe says so."""
        r = self.recipe
        crop = views.Crop(
            size=r.image_size,
            scale=r.crop_scale,
            interpolation="bilinear",
            flip=r.flip,
            jitter=(0.8 * r.colour, 0.8 * r.colour, 0.8 * r.colour, 0.2 * r.colour),
            jitter_probability=0.8 if r.colour else 0.0,
            grey=0.2 if r.colour else 0.0,
            blur=r.blur,
        )
        return views.MultiCrop([crop])

    def collator(self) -> MultiBlock:
        """Masks are drawn with the batch."""
        r = self.recipe
        return MultiBlock(
            grid=self.grid,
            targets=r.targets,
            contexts=r.contexts,
            target_scale=r.target_scale,
            target_aspect=r.target_aspect,
            context_scale=r.context_scale,
            min_keep=r.min_keep,
            allow_overlap=r.allow_overlap,
        )

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """Dense: the context encoder's visible tokens after the final norm, [contexts * B, Ke, D]."""
        (images,), r = views.images, self.recipe
        contexts = [views.extra[f"context_{i}"] for i in range(r.contexts)]
        targets = [views.extra[f"target_{i}"] for i in range(r.targets)]
        tokens, predictions = self.student(images, contexts, targets)
        with torch.no_grad():
            full = backbones.vit_tokens(self.teacher["backbone"], images)  # pyright: ignore[reportArgumentType]
        return StepOutput(prediction_loss(predictions, make_targets(full, targets, len(contexts))), tokens)

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """The authors' schedulers move before the update and count from 1; the momentum counts from 0."""
        r, steps = self.recipe, plan.total_steps
        exact = r.schedule_stretch * plan.epochs * plan.steps_per_epoch
        length = int(exact)
        warmup = int(r.warmup_epochs * plan.steps_per_epoch)
        t = np.arange(1, steps + 1, dtype=np.float64)
        rising = r.start_lr + t / max(warmup, 1) * (r.lr - r.start_lr)
        falling = _cosine(r.lr, r.final_lr, (t - warmup) / max(length - warmup, 1))
        share = np.minimum(np.arange(steps) / exact, 1)  # a schedule shorter than the run stays at its end
        rise = r.final_teacher_momentum - r.teacher_momentum
        decay = _cosine(r.weight_decay, r.final_weight_decay, t / length)
        bound = np.maximum if r.final_weight_decay <= r.weight_decay else np.minimum
        return {
            "lr": np.where(t < warmup, rising, np.maximum(falling, r.final_lr)),
            "weight_decay": bound(decay, r.final_weight_decay),
            "teacher_momentum": r.teacher_momentum + share * rise,
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """No decay on biases and one-dimensional parameters; the mask token is decayed."""
        return optim.split_by_decay(self.student.named_parameters())

    def after_step(self, progress: Progress) -> None:
        """The target encoder follows."""
        teacher.ema_update(
            self.teacher["backbone"], self.student.backbone, progress.values["teacher_momentum"]
        )


def _cosine(base: float, final: float, share: np.ndarray) -> np.ndarray:
    return final + 0.5 * (base - final) * (1 + np.cos(np.pi * share))
