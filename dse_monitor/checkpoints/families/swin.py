"""Swin transformers (version 1) of any width, depth and window; bias tables tell heads and windows.

Shapes: a block's relative_position_bias_table is [(2w - 1)^2, h] for a window of w x w and h heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families import Family, unseen
from dse_monitor.checkpoints.families.layers import convolution, linear, norm
from dse_monitor.checkpoints.families.network import (
    IMAGE_SIZE,
    Hints,
    Network,
    NotThisNetwork,
    count_blocks,
)
from dse_monitor.checkpoints.families.outputs import timm_tokens
from dse_monitor.checkpoints.families.refusals import plausible
from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.facts import Fact

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dse_monitor.tokens import Tokens

_ANY_SIDE = 1 << 30
MAX_STAGES = 8  # ours: each halves the map, so more would leave nothing of any image
NORM_EPS = 1e-5  # LayerNorm epsilon of the Swin authors, timm and torchvision


def recognise(shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network of these tensors (timm's names).

    Raises:
        NotThisNetwork: no Swin transformer that can be built.
    """
    plausible(shapes)
    if "layers.0.blocks.0.attn.logit_scale" in shapes:
        raise NotThisNetwork(
            "it is a Swin transformer version 2, whose window the tensors do not show; use --arch"
        )
    width, channels, patch, across = _embedding(shapes)
    if patch != across:
        raise NotThisNetwork(
            f"its patches are {patch} x {across} pixels; patches that are not square are not built"
        )
    act = unseen.activation(hints, "gelu", "every published Swin", built=("gelu",))
    eps = unseen.norm_epsilon(hints, NORM_EPS, "the authors', timm's and torchvision's Swin")
    if "absolute_pos_embed" in shapes:
        raise NotThisNetwork("it adds absolute positions (absolute_pos_embed), which timm's Swin has not")
    stages = count_blocks(shapes, "layers.")
    if not 1 <= stages <= MAX_STAGES:
        raise NotThisNetwork(f"it has {stages} stages named layers.0, layers.1, ...; four are usual")
    depths = tuple(count_blocks(shapes, f"layers.{stage}.blocks.") for stage in range(stages))
    windows, heads = zip(*(_window(shapes, stage) for stage in range(stages)), strict=True)
    _check_widths(shapes, width, stages)
    hidden = shapes.get("layers.0.blocks.0.mlp.fc1.weight", (0,))[0]
    grid, plan = _grid_and_plan(patch, windows, _own_size(hints))
    size = _image_size(grid * patch, hints)
    rows, columns = (_rounded_up(-(-side // patch), stages - 1) for side in size.value)
    pad_first = bool(hints.details.get("pad_first"))
    known = (1, _ANY_SIDE)  # patches per side for which the shifts were chosen, from and to
    if hints.details.get("shift_as_built"):  # equal windows only say that the last stage was no smaller
        known = (grid, grid) if len(set(windows)) > 1 else (windows[0] * 2 ** (stages - 1), _ANY_SIDE)
        plan = _rounded_down
    elif pad_first:
        plan = _rounded_up
    options: dict[str, Any] = dict(
        img_size=grid * patch,
        patch_size=patch,
        in_chans=channels,
        embed_dim=width,
        depths=depths,
        num_heads=heads,
        window_size=windows[0] if len(set(windows)) == 1 else windows,
        mlp_ratio=hidden / width * (1 + 1e-9),  # timm truncates width * ratio
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in shapes,
    )
    patch_norm = "patch_embed.norm.weight" in shapes
    window_words = "-".join(map(str, windows)) if len(set(windows)) > 1 else str(windows[0])
    return Network(
        family="swin",
        description=(
            f"swin {width}, blocks {'-'.join(map(str, depths))}, heads {'-'.join(map(str, heads))}, "
            f"window {window_words}, patch {patch}"
            f"{unseen.bands(channels)}"
        ),
        build=partial(
            _build,
            options,
            eps.value,
            pad_first=pad_first,
            patch_norm=patch_norm,
        ),
        tensors=_tensors(options, windows, patch_norm=patch_norm),
        tokens=partial(_tokens, plan, *known),
        grid=(rows, columns),
        width=width * 2 ** (stages - 1),
        channels=channels,
        image_size=size.value,
        layers=stages,
        any_size=True,
        heads=f"{'-'.join(map(str, heads))} (relative position bias tables)",
        facts=(
            act.fact,
            eps.fact,
            _windows_fact(pad_first, hints),
            size.fact,
        ),
    )


def _windows_fact(pad_first: bool, hints: Hints) -> Fact:
    value = f"shifted by half, grids filled up {'before' if pad_first else 'after'} that"
    return hints.fact("windows", value, "the library that names its tensors so")


def _check_widths(shapes: Mapping[str, Shape], width: int, stages: int) -> None:
    for stage in range(stages):
        found = shapes.get(f"layers.{stage}.blocks.0.norm1.weight", (0,))[0]
        if found != width * 2**stage:
            raise NotThisNetwork(f"stage {stage} is {found} wide; {width * 2**stage} was expected")


def _own_size(hints: Hints) -> int | None:
    """Side of the images it was built for, where a configuration says it; shifts were chosen for these."""
    stated = hints.say("image_size")
    return None if stated is None or stated.source == "--image-size" else stated.value[0]


def _image_size(built_for: int, hints: Hints) -> unseen.Unseen:
    """Height and width of the images it is given: those the user wants, or it was built for."""
    stated = hints.say("image_size")
    if stated is not None and (stated.source == "--image-size" or stated.value[0] == built_for):
        return unseen.free_size(hints)
    size = (built_for, built_for)
    value = f"{built_for} x {built_for} px"
    return unseen.Unseen(
        size, Fact("image size", value, "it takes any; one that its windows fit", assumed=True)
    )


def _embedding(shapes: Mapping[str, Shape]) -> Shape:
    weight = shapes.get("patch_embed.proj.weight", ())
    if len(weight) != 4:
        raise NotThisNetwork(f"patch_embed.proj.weight is {list(weight)}, not [D, C, p, p]")
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


def _rounded_up(side: int, stage: int) -> int:
    """Side of the token grid at a stage: merging fills odd grids up, so every stage rounds up."""
    return -(-side // 2**stage)


def _rounded_down(side: int, stage: int) -> int:
    """Side as the constructors of the Swin authors, EsViT, iBOT and timm before 1.0.23 reckon with it."""
    return side // 2**stage


def _grid_and_plan(
    patch: int, windows: tuple[int, ...], known: int | None
) -> tuple[int, Callable[[int, int], int]]:
    """Patches per side of the images the tables were made for, and how the constructor rounded.

    A stage planned smaller than the window got a window of its own size, so tables of different sizes give
    the image size away; equal ones fit any image whose last stage is at least one window. Networks whose
    stages have windows of their own (Swin S3) fit an image size in which no window exceeds its stage.
    """
    largest = max(window * 2**stage for stage, window in enumerate(windows))
    usual = [size // patch for size in (known, IMAGE_SIZE) if size]
    sides = [*usual, *range(1, largest + 1)]
    for plan in (_rounded_down, _rounded_up):
        for side in sides:
            if windows == tuple(min(windows[0], plan(side, stage)) for stage in range(len(windows))):
                return side, plan
    for side in [*usual, largest]:
        if all(window <= _rounded_down(side, stage) for stage, window in enumerate(windows)):
            return side, _rounded_down
    raise NotThisNetwork(f"windows of {', '.join(map(str, windows))} fit no image size")


def _tensors(options: dict[str, Any], windows: tuple[int, ...], *, patch_norm: bool) -> dict[str, Shape]:
    """The state dict of what `_build` makes of the same arguments."""
    width = options["embed_dim"]
    tensors = convolution("patch_embed.proj", width, options["in_chans"], options["patch_size"], bias=True)
    if patch_norm:
        tensors |= norm("patch_embed.norm", width)
    for stage, depth in enumerate(options["depths"]):
        layer, heads, side = f"layers.{stage}", options["num_heads"][stage], 2 * windows[stage] - 1
        if stage:
            tensors |= norm(f"{layer}.downsample.norm", 4 * width)
            tensors |= linear(f"{layer}.downsample.reduction", 2 * width, 4 * width, bias=False)
            width *= 2
        hidden = int(width * options["mlp_ratio"])
        for block in (f"{layer}.blocks.{index}" for index in range(depth)):
            tensors |= norm(f"{block}.norm1", width)
            tensors[f"{block}.attn.relative_position_bias_table"] = (side * side, heads)
            tensors |= linear(f"{block}.attn.qkv", 3 * width, width, bias=options["qkv_bias"])
            tensors |= linear(f"{block}.attn.proj", width, width)
            tensors |= norm(f"{block}.norm2", width)
            tensors |= linear(f"{block}.mlp.fc1", hidden, width)
            tensors |= linear(f"{block}.mlp.fc2", width, hidden)
    return {**tensors, **norm("norm", width)}


def _build(options: dict[str, Any], eps: float, *, pad_first: bool, patch_norm: bool) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer
    from torch import nn

    norm_layer: Any = partial(nn.LayerNorm, eps=eps)
    model = SwinTransformer(
        **options,
        num_classes=0,
        norm_layer=norm_layer,
        strict_img_size=False,
        always_partition=True,  # windows as given: releases of timm round stages differently
        drop_path_rate=0.0,
    )
    if not patch_norm:
        model.patch_embed.norm = nn.Identity()
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


def _tokens(
    plan: Callable[[int, int], int],
    smallest: int,
    largest: int,
    model: Any,
    images: Tensor,
    layer: int | None,
) -> Tokens:
    """A stage's tokens, the last's after the final norm, row by row: [B, 3, H, W] -> [B, N, D].

    A stage planned no larger than its window is not shifted. Networks choose that for the images they see,
    or once for those they were built for (EsViT, iBOT): then `smallest` and `largest` bound the patches per
    side.
    """
    patch = model.patch_embed.patch_size
    side = min(images.shape[-2] // patch[0], images.shape[-1] // patch[1])
    side = min(max(side, smallest), largest)
    for stage, blocks in enumerate(model.layers):
        for block in blocks.blocks:
            fits = plan(side, stage) <= min(block.window_size)
            block.shift_size = (0, 0) if fits else block.target_shift_size
    return timm_tokens(model, images, layer)


FAMILY = Family(recognise)
