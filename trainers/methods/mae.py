"""MAE: encode a random quarter of the patches, reconstruct the pixels of the rest.

He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377.
Reference: facebookresearch/mae, branch main: models_mae.py, main_pretrain.py, util/lr_sched.py.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, views
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Progress, Recipe, StepOutput, Views


@dataclass(frozen=True, kw_only=True)
class MAERecipe(Recipe):
    """MAE's numbers: the README's pretraining command; ViT-Small as the DSE paper trains it.

    Attributes:
        final_lr: where the learning rate ends.
        mask_ratio: share of the patches that is removed.
        normalised_pixels: whether each target patch is normalised by its own mean and variance.
        decoder_width: width of the decoder.
        decoder_depth: its blocks.
        decoder_heads: its attention heads.
    """

    backbone: str = "vit_small_patch16_224"  # mae_vit_small_patch16 (authors: vit_large_patch16_224)
    batch_size: int = 4096  # README: 64 GPUs x 64
    epochs: int = 800  # README
    warmup_epochs: int = 40  # --warmup_epochs
    lr: float = 1.5e-4  # README --blr, per 256 images
    final_lr: float = 0.0  # --min_lr
    weight_decay: float = 0.05  # --weight_decay
    betas: tuple[float, float] = (0.9, 0.95)  # main_pretrain.py
    mask_ratio: float = 0.75  # --mask_ratio
    normalised_pixels: bool = True  # README --norm_pix_loss
    decoder_width: int = 512  # models_mae.py, every size
    decoder_depth: int = 8  # models_mae.py
    decoder_heads: int = 16  # models_mae.py

    @classmethod
    def tiny(cls) -> MAERecipe:
        """A four-block ViT and a two-block decoder on 64-px scenes."""
        return dataclasses.replace(
            cls(),
            backbone="vit_mini_patch8",
            image_size=64,
            batch_size=64,
            epochs=10,
            warmup_epochs=1,
            lr=4e-3,  # x 64 / 256
            decoder_width=64,
            decoder_depth=2,
            decoder_heads=2,
        )


class Masking(NamedTuple):
    """Which patches survive.

    Attributes:
        kept: int64 [B, K], indices of surviving patches by increasing noise, not by place.
        restore: int64 [B, N], where each patch went: the inverse of the ranking.
        mask: float [B, N], 1 where a patch was removed.
    """

    kept: Tensor
    restore: Tensor
    mask: Tensor


def random_masking(noise: Tensor, mask_ratio: float) -> Masking:
    """Keep the int(N * (1 - ratio)) patches of each image with the smallest noise [B, N].

    As released, the number is cut off after the rounding of floats: of ten patches, 0.9 hides all.
    """
    count = int(noise.shape[1] * (1 - mask_ratio))
    ranking = noise.argsort(dim=1)
    restore = ranking.argsort(dim=1)
    return Masking(ranking[:, :count], restore, (restore >= count).to(noise.dtype))


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, 3, h, w] -> [B, N, patch * patch * 3]: row in patch, column in patch, channel (fastest)."""
    grid = images.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))  # [B, 3, rows, p, columns, p]
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """The inverse of :func:`patchify` for square images: [B, N, patch * patch * 3] -> [B, 3, h, h]."""
    side = math.isqrt(patches.shape[1])
    grid = patches.unflatten(2, (patch, patch, 3)).unflatten(1, (side, side))  # [B, rows, columns, p, p, 3]
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def normalise_patches(patches: Tensor) -> Tensor:
    """Each patch [..., P] less its mean, over its deviation (unbiased variance plus 1e-6)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def reconstruction_loss(predictions: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of the removed patches over the batch.

    Args:
        predictions: [B, N, P].
        targets: [B, N, P].
        mask: [B, N], 1 where a patch was removed.
    """
    error = (predictions.float() - targets).square().mean(-1)
    return (error * mask).sum() / mask.sum()


class Decoder(nn.Module):
    """A narrow transformer over all positions; removed ones hold a learned token."""

    def __init__(
        self, width: int, grid: int, patch: int, recipe: MAERecipe, *, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        r, options = recipe, {"mlp_ratio": mlp_ratio, "qkv_bias": True, "norm_layer": LayerNorm}
        self.embed = nn.Linear(width, r.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, r.decoder_width))
        positions = backbones.sincos_positions(r.decoder_width, grid, cls=True)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.Sequential(
            *[Block(r.decoder_width, r.decoder_heads, **options) for _ in range(r.decoder_depth)]
        )
        self.norm = LayerNorm(r.decoder_width)
        self.pred = nn.Linear(r.decoder_width, patch * patch * 3)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Encoder output [B, 1 + K, D], places [B, N] -> predicted pixels [B, N, patch * patch * 3]."""
        tokens = self.embed(latent)
        missing = restore.shape[1] + 1 - tokens.shape[1]
        masks = self.mask_token.to(tokens.dtype).expand(len(tokens), missing, -1)
        patches = torch.cat([tokens[:, 1:], masks], 1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, patches.shape[-1]))
        tokens = torch.cat([tokens[:, :1], patches], 1) + self.pos_embed
        return self.pred(self.norm(self.blocks(tokens)))[:, 1:]


def initialise(module: nn.Module) -> None:
    """The authors' start: xavier uniform for every matrix, the patch projection as the matrix it is."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if isinstance(module, VisionTransformer):
        nn.init.xavier_uniform_(module.patch_embed.proj.weight.data.flatten(1))
        assert module.cls_token is not None
        assert module.pos_embed is not None
        nn.init.normal_(module.cls_token, std=0.02)
        grid = math.isqrt(module.patch_embed.num_patches)
        module.pos_embed.data.copy_(backbones.sincos_positions(module.embed_dim, grid, cls=True))
        module.pos_embed.requires_grad_(False)


class Autoencoder(nn.Module):
    """Encoder and decoder."""

    def __init__(self, backbone: VisionTransformer, decoder: Decoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder

    def forward(self, images: Tensor, masking: Masking) -> tuple[Tensor, Tensor]:
        """Images [B, 3, h, w] -> latent [B, 1 + K, D], cls first, and predictions [B, N, P]."""
        tokens = backbones.vit_embed(self.backbone, images)
        tokens = tokens.gather(1, masking.kept[..., None].expand(-1, -1, tokens.shape[-1]))
        latent = backbones.vit_encode(self.backbone, tokens)
        return latent, self.decoder(latent, masking.restore)


class MAE(Method):
    """Masked autoencoding."""

    recipe_type = MAERecipe
    differences = (
        "The network is ViT-S/16, as the DSE paper trains it; the authors' default is ViT-L/16. Nothing else "
        "is known to differ."
    )

    def __init__(self, recipe: MAERecipe) -> None:
        super().__init__(recipe)
        self.recipe = recipe
        self.backbone_spec = backbones.describe(recipe.backbone, recipe.image_size, ("vit",), cls_token=True)
        backbone = backbones.build(self.backbone_spec)
        assert isinstance(backbone, VisionTransformer)
        self.patch = backbone.patch_embed.patch_size[0]
        decoder = Decoder(backbone.embed_dim, recipe.image_size // self.patch, self.patch, recipe)
        initialise(backbone)
        initialise(decoder)
        self.student = Autoencoder(backbone, decoder)

    def views(self) -> views.MultiCrop:
        """One view: crop and flip."""
        return views.MultiCrop([views.plain_crop(self.recipe.image_size, (0.2, 1.0))])

    def forward(self, views: Views, progress: Progress) -> StepOutput:
        """Dense: the encoder's kept tokens after the final norm, [B, K, D], in the order of the masking."""
        (images,) = views.images
        count = (images.shape[-1] // self.patch) ** 2
        masking = random_masking(torch.rand(len(images), count, device=images.device), self.recipe.mask_ratio)
        latent, predictions = self.student(images, masking)
        with torch.autocast(images.device.type, enabled=False):
            targets = patchify(images.float(), self.patch)
            if self.recipe.normalised_pixels:
                targets = normalise_patches(targets)
            loss = reconstruction_loss(predictions, targets, masking.mask)
        return StepOutput(loss, latent[:, 1:])

    def schedules(self, plan: Plan) -> dict[str, np.ndarray]:
        """Per step, by fractional epochs."""
        r, steps = self.recipe, plan.total_steps
        peak, warmup = r.lr * plan.batch_size / 256, r.warmup_epochs * plan.steps_per_epoch
        return {
            "lr": optim.linear_cosine(peak, r.final_lr, steps, warmup_steps=warmup),
            "weight_decay": optim.constant(r.weight_decay, steps),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """No decay on biases and one-dimensional parameters; cls and mask token are decayed."""
        return optim.split_by_decay(self.student.named_parameters())
