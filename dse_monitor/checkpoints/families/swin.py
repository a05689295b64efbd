"""Swin transformers (version 1) of any width, depth and window; bias tables tell heads and windows.

Shapes: a block's relative_position_bias_table is [(2w - 1)^2, h] for a window of w x w and h heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.network import IMAGE_SIZE, Hints, Network, NotThisNetwork, count_blocks
from dse_monitor.checkpoints.statedicts import Shape

if TYPE_CHECKING:
    from torch import Tensor, nn

NORM_EPS = 1e-5  # LayerNorm epsilon of the Swin authors, timm and torchvision


def recognise(shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network of these tensors (timm's names).

    Raises:
        NotThisNetwork: no Swin transformer that can be built.
    """
    if "layers.0.blocks.0.attn.logit_scale" in shapes:
        raise NotThisNetwork(
            "it is a Swin transformer version 2, whose window the tensors do not show; use --arch"
        )
    width, channels, patch, across = _embedding(shapes)
    if channels != 3 or patch != across:
        raise NotThisNetwork(
            f"its patches are {patch}x{across} pixels of {channels} channels; square RGB was expected"
        )
    stages = count_blocks(shapes, "layers.")
    depths = tuple(count_blocks(shapes, f"layers.{stage}.blocks.") for stage in range(stages))
    windows, heads = zip(*(_window(shapes, stage) for stage in range(stages)), strict=True)
    for stage in range(stages):
        found = shapes.get(f"layers.{stage}.blocks.0.norm1.weight", (0,))[0]
        if found != width * 2**stage:
            raise NotThisNetwork(f"stage {stage} is {found} wide; {width * 2**stage} was expected")
    hidden = shapes.get("layers.0.blocks.0.mlp.fc1.weight", (0,))[0]
    size = _image_size(patch, windows, hints.image_size)
    side = _resolution(size // patch, stages - 1)
    options: dict[str, Any] = dict(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depths=depths,
        num_heads=heads,
        window_size=windows[0] if len(set(windows)) == 1 else windows,
        mlp_ratio=hidden / width * (1 + 1e-9),  # timm truncates width * ratio
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in shapes,
    )
    window_words = "-".join(map(str, windows)) if len(set(windows)) > 1 else str(windows[0])
    return Network(
        family="swin",
        description=(
            f"swin {width}, blocks {'-'.join(map(str, depths))}, heads {'-'.join(map(str, heads))}, "
            f"window {window_words}, patch {patch}"
        ),
        build=partial(_build, options, hints.norm_eps or NORM_EPS, bool(hints.details.get("pad_first"))),
        tokens=_tokens,
        num_tokens=side * side,
        width=width * 2 ** (stages - 1),
        image_size=size,
        any_size=True,
        heads=f"{'-'.join(map(str, heads))} (relative position bias tables)",
        mean=hints.mean,
        std=hints.std,
    )


def _embedding(shapes: Mapping[str, Shape]) -> Shape:
    weight = shapes.get("patch_embed.proj.weight", ())
    if len(weight) != 4:
        raise NotThisNetwork(f"patch_embed.proj.weight is {list(weight)}, not [D, 3, p, p]")
    return weight


def _window(shapes: Mapping[str, Shape], stage: int) -> tuple[int, int]:
    """Window side and heads of a stage."""
    table = shapes.get(f"layers.{stage}.blocks.0.attn.relative_position_bias_table", ())
    if len(table) != 2:
        raise NotThisNetwork(f"stage {stage} has no relative position bias table [(2w - 1)^2, heads]")
    side = math.isqrt(table[0])
    if side * side != table[0] or side % 2 == 0:
        raise NotThisNetwork(
            f"the bias table of stage {stage} has {table[0]} rows, not an odd number squared"
        )
    return (side + 1) // 2, table[1]


def _resolution(grid: int, stage: int) -> int:
    """Side of the token grid at a stage; every merging rounds up."""
    for _ in range(stage):
        grid = (grid + 1) // 2
    return grid


def _image_size(patch: int, windows: tuple[int, ...], known: int | None) -> int:
    """The image side the tables were made for.

    A stage smaller than the window got a window of its own size when it was built, so tables of different
    sizes give the image size away; equal ones fit any image whose last stage is at least one window.
    """
    last = len(windows) - 1
    implied = patch * windows[-1] * 2**last
    for size in (known, IMAGE_SIZE, implied):
        if size and all(
            window == min(windows[0], _resolution(size // patch, stage))
            for stage, window in enumerate(windows)
        ):
            return size
    raise NotThisNetwork(f"windows of {', '.join(map(str, windows))} fit no image size")


def _build(options: dict[str, Any], eps: float, pad_first: bool) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer
    from torch import nn

    norm_layer: Any = partial(nn.LayerNorm, eps=eps)
    model = SwinTransformer(
        **options,
        num_classes=0,
        norm_layer=norm_layer,
        strict_img_size=False,
        drop_path_rate=0.0,
    )
    if pad_first:
        stages: Any = model.layers
        for layer in stages:
            for block in layer.blocks:
                block._attn = partial(_pad_then_attend, block.window_size, block._attn)
    return model


def _pad_then_attend(window: tuple[int, int], attend: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Attention in windows on a grid [B, H, W, D] filled up with zeros before it is shifted.

    timm shifts first and fills up then. The two differ where windows do not divide the grid.
    """
    from torch.nn.functional import pad

    height, width = x.shape[1:3]
    x = pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    return attend(x)[:, :height, :width]


def _tokens(model: Any, images: Tensor) -> Tensor:
    """The last stage's tokens after the final norm, row by row: [B, 3, H, W] -> [B, N, D].

    For images of another size than the network was built for, a stage no larger than its window is not
    shifted, as in a network built for that size.
    """
    patch = model.patch_embed.patch_size
    grid = (images.shape[-2] // patch[0], images.shape[-1] // patch[1])
    for stage, layer in enumerate(model.layers):
        smallest = min(_resolution(side, stage) for side in grid)
        for block in layer.blocks:
            fits = smallest <= min(block.window_size)
            block.shift_size = (0, 0) if fits else block.target_shift_size
    return model.forward_features(images).flatten(1, 2)
