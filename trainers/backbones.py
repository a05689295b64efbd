"""timm models as encoders that also return dense tokens, described so that a checkpoint can rebuild them.

Three families: ``vit`` (plain vision transformers: learned or fixed positions, at most a cls token), ``swin``
(hierarchical, one grid of tokens at the end) and ``conv`` (feature maps). Methods hold the timm model itself,
so state dicts carry timm's names; what a method needs beyond timm's forward is a function here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Networks for 64-px images on a CPU; a name here may stand wherever a timm name may.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_mini_patch8": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 2.0},
    ),
    "swin_mini_patch4": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 4, "embed_dim": 32, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "window_size": 4},
    ),
    "resnet_mini": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}),
    "convnext_mini": ("convnext_tiny", {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128]}),
}


class UnfitBackbone(ValueError):
    """The named network cannot serve the method: what was found, what is needed, what to choose."""


@dataclass(frozen=True)
class Backbone:
    """A network that timm can build again: ``timm.create_model(name, num_classes=0, **kwargs)``.

    Where an option is None, which ``create_model`` drops, it is the model's own function that builds it:
    ``timm.models.model_entrypoint(name)(num_classes=0, **kwargs)``.

    Attributes:
        name: timm's name.
        kwargs: plain keyword arguments for timm.
        image_size: side of the images it is made for, pixels.
        family: ``vit``, ``swin`` or ``conv``.
        width: feature width D.
        num_heads: attention heads of a ``vit``, else None.
        norm_eps: epsilon given to every LayerNorm after building; None leaves timm's.
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    image_size: int = 224
    family: str = "vit"
    width: int = 0
    num_heads: int | None = None
    norm_eps: float | None = None


class Features(NamedTuple):
    """What an encoder says of images: ``pooled`` [B, D] and ``dense`` [B, N, D] in row-major order."""

    pooled: Tensor
    dense: Tensor


def describe(
    name: str,
    image_size: int,
    families: Sequence[str] = ("vit", "swin", "conv"),
    *,
    cls_token: bool = False,
    norm_eps: float | None = None,
    **kwargs: Any,
) -> Backbone:
    """Check that a network exists and fits, without keeping it.

    Args:
        name: a timm model name or one of :data:`SMALL`.
        image_size: side of the images, pixels.
        families: those the method can use.
        cls_token: whether a ViT must have one.
        norm_eps: epsilon of every LayerNorm where the authors' differs from timm's.
        **kwargs: further arguments for timm, plain Python values only.

    Returns:
        The description; build it as often as needed with :func:`build`.

    Raises:
        UnfitBackbone: the name is unknown, or the network is of another family or has parts the methods
            cannot use.
    """
    timm_name, small = SMALL.get(name, (name, {}))
    if not timm.is_model(timm_name):
        near = ", ".join(get_close_matches(name, timm.list_models(), 5)) or "see timm.list_models()"
        raise UnfitBackbone(f"timm has no model {name!r}. Near it: {near}; small ones: {', '.join(SMALL)}.")
    kwargs = {**small, **kwargs}
    with torch.device("meta"):
        probe = _family(timm.create_model(timm_name, num_classes=0), timm_name)
    if probe not in families:
        raise UnfitBackbone(f"{name} is of the {probe} family, this method needs {' or '.join(families)}.")
    if probe in ("vit", "swin"):
        kwargs = {"img_size": image_size, **kwargs}
    spec = Backbone(timm_name, kwargs, image_size, probe, norm_eps=norm_eps)
    with torch.device("meta"):
        model: Any = _create(spec) if probe == "conv" else build(spec)
    if cls_token and probe == "vit" and model.cls_token is None:
        raise UnfitBackbone(f"{name} has no cls token, which this method's loss needs.")
    _try(model.eval(), name, image_size)
    heads = model.blocks[0].attn.num_heads if probe == "vit" else None
    return Backbone(timm_name, kwargs, image_size, probe, model.num_features, heads, norm_eps)


def build(spec: Backbone, **kwargs: Any) -> nn.Module:
    """A new network with timm's initialisation; ``kwargs`` (drop_path_rate, ...) stay undescribed."""
    if spec.family == "swin":
        kwargs = {"drop_path_rate": 0.0, **kwargs}  # timm's own default is 0.1, which a teacher must not have
    model: Any = _create(spec, **kwargs)
    if spec.family == "vit":
        model.patch_embed.strict_img_size = False  # crops of several sizes share one network
    if spec.family == "conv":
        idle = _idle_parameters(spec)
        for name, parameter in model.named_parameters():
            if name in idle:
                parameter.requires_grad_(False)  # DDP waits for every trained one
    if spec.family == "swin":
        model.patch_embed.strict_img_size = False
        for block in (block for stage in model.layers for block in stage.blocks):
            block.dynamic_mask = True
            block._attn = partial(_fill_up_then_attend, block.window_size, block._attn)
    if spec.norm_eps is not None:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = spec.norm_eps
    return model


def _create(spec: Backbone, **kwargs: Any) -> nn.Module:
    options: dict[str, Any] = {"num_classes": 0, **spec.kwargs, **kwargs}
    if None in options.values():  # which create_model would drop
        return timm.models.model_entrypoint(spec.name)(**options)
    return timm.create_model(spec.name, **options)


def _idle_parameters(spec: Backbone) -> set[str]:
    """Names of a convolutional network's parameters behind its features: norms after pooling, heads."""
    with torch.device("meta"):
        twin = _create(spec).eval()
    shape_of_features(twin, spec.image_size).dense.sum().backward()
    return {name for name, parameter in twin.named_parameters() if parameter.grad is None}


def _fill_up_then_attend(
    window: tuple[int, int], attend: Callable[[Tensor], Tensor], tokens: Tensor
) -> Tensor:
    """Attention in windows on a grid [B, H, W, D], filled up with zeros to whole windows and then shifted.

    So do the Swin authors and EsViT; timm shifts first. The two differ where windows do not divide the grid:
    24 patches a side in EsViT's local crops.
    """
    height, width = tokens.shape[1:3]
    filled = F.pad(tokens, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    return attend(filled)[:, :height, :width]


def features(model: nn.Module, images: Tensor) -> Features:
    """Pooled and dense features of images [B, 3, h, w] by the family's own rule.

    vit: the cls token (mean of the tokens if there is none) and the patch tokens, both after the final norm.
    swin: mean over the tokens, and the tokens, after the final norm. conv: mean over the last map, and its
        positions.
    """
    if isinstance(model, VisionTransformer):
        tokens = vit_tokens(model, images)
        dense = tokens[:, model.num_prefix_tokens :]
        return Features(tokens[:, 0] if model.num_prefix_tokens else dense.mean(1), dense)
    maps = model.forward_features(images)  # pyright: ignore[reportCallIssue]
    dense = maps.flatten(1, 2) if isinstance(model, SwinTransformer) else maps.flatten(2).transpose(1, 2)
    return Features(dense.mean(1), dense)


def shape_of_features(model: nn.Module, image_size: int) -> Features:
    """Features of one square image by a network on the meta device: shapes and slopes, no numbers."""
    return features(model, torch.empty(1, 3, image_size, image_size, device="meta"))


def vit_tokens(model: VisionTransformer, images: Tensor) -> Tensor:
    """All tokens [B, prefix + N, D] after the final norm, positions interpolated as DINO does."""
    return vit_encode(model, vit_embed(model, images))


def vit_embed(
    model: VisionTransformer, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
) -> Tensor:
    """Patch tokens [B, N, D] with positions added, cls token not yet prepended.

    Args:
        model: a plain ViT.
        images: [B, 3, h, w].
        mask: bool [B, N]; where true the projected patch is replaced by ``mask_token`` before positions are
            added.
        mask_token: [1, D] or [1, 1, D]; needed with ``mask``.
    """
    tokens = model.patch_embed(images)
    if mask is not None:
        assert mask_token is not None, "mask needs mask_token"
        tokens = torch.where(mask[..., None], mask_token.to(tokens.dtype).view(1, 1, -1), tokens)
    assert model.pos_embed is not None
    prefix = model.num_prefix_tokens
    patch: Any = model.patch_embed.patch_size
    positions = interpolate_positions(model.pos_embed, images.shape[-2], images.shape[-1], patch[0], prefix)
    return tokens + positions[:, prefix:]


def vit_encode(model: VisionTransformer, tokens: Tensor, *, norm: bool = True) -> Tensor:
    """Prepend the cls token (with its position) if there is one, run the blocks and the final norm.

    Args:
        model: a plain ViT.
        tokens: any subset of embedded patch tokens [B, n, D], from :func:`vit_embed`.
        norm: whether to apply the final norm.

    Returns:
        [B, prefix + n, D].
    """
    if model.cls_token is not None:
        assert model.pos_embed is not None
        cls = model.cls_token + model.pos_embed[:, :1]
        tokens = torch.cat([cls.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], 1)
    tokens = model.norm_pre(tokens)
    for block in model.blocks:
        if model.grad_checkpointing and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
        else:
            tokens = block(tokens)
    return model.norm(tokens) if norm else tokens


def interpolate_positions(positions: Tensor, height: int, width: int, patch: int, prefix: int = 1) -> Tensor:
    """Position embeddings for images of another size, as facebookresearch/dino vision_transformer.py does it.

    Bicubic with an explicit scale factor (size_in_patches + 0.1) / sqrt(N), not with a target size: the two
    give different numbers (and timm resamples with antialiasing, a third result).

    Args:
        positions: [1, prefix + N, D], N a square number.
        height: image height, pixels.
        width: image width, pixels.
        patch: patch side, pixels.
        prefix: leading entries that are kept as they are (1 with a cls slot, 0 without).

    Returns:
        [1, prefix + height // patch * width // patch, D].
    """
    count = positions.shape[1] - prefix
    side = math.isqrt(count)
    rows, columns = height // patch, width // patch
    if rows * columns == count and height == width:  # pixels, as there
        return positions
    grid = positions[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / math.sqrt(count), (columns + 0.1) / math.sqrt(count))
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    assert grid.shape[-2:] == (rows, columns)
    return torch.cat([positions[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def sincos_positions(
    width: int, grid: int, *, cls: bool = False, rows_first: bool = False, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Fixed 2-D sin-cos position embeddings.

    Frequencies omega_k = 10000^(-k / (D/4)), k < D/4; an axis is written [sin, cos]. MAE and I-JEPA put the
    column in first half and the row in the second; MoCo v3's table is the other way round (``rows_first``).

    Args:
        width: D, a multiple of four.
        grid: tokens per side.
        cls: whether to put a zero row in front.
        rows_first: MoCo v3's order.
        dtype: computed in; MoCo v3's table is float32 throughout.

    Returns:
        float32 [1, cls + grid * grid, D] in row-major order.
    """
    omega = 1 / 10000.0 ** (torch.arange(width // 4, dtype=dtype) / (width // 4))
    angles = torch.arange(grid, dtype=dtype)[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], 1)  # [grid, D / 2]
    rows = axis[:, None].expand(-1, grid, -1).flatten(0, 1)
    columns = axis.repeat(grid, 1)
    table = torch.cat([rows, columns] if rows_first else [columns, rows], 1)
    if cls:
        table = torch.cat([table.new_zeros(1, width), table])
    return table.float()[None]


def checkpoint_activations(module: nn.Module) -> None:
    """Recompute activations block by block in the backward pass of every trained timm network inside.

    Call it once batch norms are what they will be: recomputing must not move their statistics again.
    """
    for child in module.modules():
        trained = any(p.requires_grad for p in child.parameters())
        if trained and hasattr(child, "set_grad_checkpointing"):
            try:
                child.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
            except AssertionError:
                raise UnfitBackbone(
                    f"{type(child).__name__} cannot recompute its activations: leave --checkpointing out"
                ) from None
            for norm in child.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats:
                    keeper = _KeepStatistics()
                    norm.register_forward_pre_hook(keeper.begin)
                    # recomputing ends by an exception as soon as it has what it needs
                    norm.register_forward_hook(keeper.end, always_call=True)


class _KeepStatistics:
    """Keeps a batch norm's running statistics when a backward pass runs it again on the same batch."""

    def __init__(self) -> None:
        self.before: tuple[float | None, Tensor] | None = None

    def begin(self, norm: Any, inputs: Any) -> None:
        del inputs
        if torch._C._current_graph_task_id() != -1:  # within a backward pass; torch.utils.checkpoint asks so
            self.before = norm.momentum, norm.num_batches_tracked.clone()
            norm.momentum = 0.0

    def end(self, norm: Any, inputs: Any, output: Any) -> None:
        del inputs, output
        if self.before is not None:
            norm.momentum, count = self.before
            norm.num_batches_tracked.copy_(count)
            self.before = None


def _try(model: nn.Module, name: str, image_size: int) -> None:
    """Refuse a network, on the meta device, that cannot see such images or gives no map of features."""
    width: Any = model.num_features
    try:
        with torch.no_grad():
            found = shape_of_features(model, image_size)
        fits = found.dense.ndim == 3 and found.dense.shape[2] == width and found.pooled.shape == (1, width)
        reason = f"gives {list(found.dense.shape)} where [1, N, {width}] is expected"
    except Exception as error:  # whatever a network's own code says
        fits, reason = False, f"fails with: {' '.join(str(error).split()) or type(error).__name__}"
    if not fits:
        raise UnfitBackbone(
            f"{name} cannot be used with images of {image_size} pixels: it {reason}. Choose another size, or "
            "a network like vit_small_patch16_224, swin_tiny_patch4_window7_224, resnet50, convnext_tiny."
        )


def _family(model: nn.Module, name: str) -> str:
    """Which family a timm model is of; refuses variants whose forward the functions here do not reproduce."""
    if isinstance(model, SwinTransformer):
        return "swin"
    if not isinstance(model, VisionTransformer):
        maps = getattr(model, "feature_info", None)
        if maps is None or not hasattr(model, "forward_features") or hasattr(model, "pos_embed"):
            raise UnfitBackbone(
                f"{name} ({type(model).__name__}) is no plain ViT, Swin or convolutional network."
            )
        return "conv"
    odd = [
        what
        for what, present in {
            "register tokens": bool(model.num_reg_tokens),
            "no position embedding": model.pos_embed is None,
            "no position for its cls token": model.no_embed_class,
            "no final norm (it pools first)": isinstance(model.norm, nn.Identity),
            "attention pooling": model.attn_pool is not None,
        }.items()
        if present
    ]
    if type(model) is not VisionTransformer or odd:
        raise UnfitBackbone(
            f"{name} is no plain ViT ({', '.join(odd) or type(model).__name__}). "
            "Choose one like vit_small_patch16_224."
        )
    return "vit"
