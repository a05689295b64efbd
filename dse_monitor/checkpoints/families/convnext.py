"""ConvNeXt, versions 1 and 2, of any width and depth.

Shapes: stem [C, channels, p, p]; a block's depthwise convolution [C, 1, k, k].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families import Family, unseen
from dse_monitor.checkpoints.families.layers import convolution, linear, norm
from dse_monitor.checkpoints.families.network import (
    POOLED_NORM,
    Hints,
    Network,
    NotThisNetwork,
    Piece,
    count_blocks,
)
from dse_monitor.checkpoints.families.outputs import timm_tokens
from dse_monitor.checkpoints.families.refusals import plausible
from dse_monitor.checkpoints.families.statedicts import Shape

if TYPE_CHECKING:
    from torch import nn

NORM_EPS = 1e-6  # LayerNorm epsilon of the authors, timm and torchvision


def recognise(shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network of these tensors (timm's names).

    Raises:
        NotThisNetwork: no ConvNeXt that can be built.
    """
    plausible(shapes)
    act = unseen.activation(hints, "gelu", "nearly every published ConvNeXt")
    eps = unseen.norm_epsilon(hints, NORM_EPS, "every published ConvNeXt")
    size = unseen.free_size(hints)
    stem = shapes.get("stem.0.weight", ())
    if len(stem) != 4 or stem[2] != stem[3]:
        raise NotThisNetwork(f"stem.0.weight is {list(stem)}, not [C, channels, p, p]")
    if len(shapes.get("stem.1.weight", ())) != 1:
        raise NotThisNetwork("its stem has more than one convolution; use --arch")
    patch = stem[2]
    stages = count_blocks(shapes, "stages.")
    if stages != 4:
        raise NotThisNetwork(f"it has {stages} stages; timm builds four")
    depths = tuple(count_blocks(shapes, f"stages.{stage}.blocks.") for stage in range(stages))
    kernels = [shapes.get(f"stages.{stage}.blocks.0.conv_dw.weight", ()) for stage in range(stages)]
    if any(len(kernel) != 4 or kernel[1] != 1 for kernel in kernels):
        raise NotThisNetwork("its blocks do not begin with a depthwise convolution stages.i.blocks.j.conv_dw")
    widths = tuple(kernel[0] for kernel in kernels)
    linear = shapes.get("stages.0.blocks.0.mlp.fc1.weight", ())
    if not linear:
        raise NotThisNetwork("its blocks have no stages.i.blocks.j.mlp.fc1")
    second = "stages.0.blocks.0.mlp.grn.weight" in shapes
    scaled = "stages.0.blocks.0.gamma" in shapes
    options: dict[str, Any] = dict(
        depths=depths,
        dims=widths,
        patch_size=patch,
        in_chans=stem[1],
        kernel_sizes=tuple(kernel[-1] for kernel in kernels),
        conv_mlp=len(linear) == 4,
        conv_bias="stages.0.blocks.0.conv_dw.bias" in shapes,
        use_grn=second,
        ls_init_value=1e-6 if scaled else None,
    )
    renamed: dict[str, Piece] = {}
    if hints.details.get("norm_before_pooling") and f"{POOLED_NORM}.weight" in shapes:
        options["head_norm_first"] = True
        for part in ("weight", "bias"):
            renamed[f"norm_pre.{part}"] = Piece((f"{POOLED_NORM}.{part}",), (widths[-1],))
    elif "norm_pre.weight" in shapes:
        options["head_norm_first"] = True
    ratio = linear[0] / widths[0]
    if ratio != 4:
        raise NotThisNetwork(f"its blocks widen {ratio:g} times; timm's ConvNeXt widens 4 times")
    rows, columns = (math.ceil(math.ceil(side / patch) / 2 ** (stages - 1)) for side in size.value)
    return Network(
        family="convnext",
        description=(
            f"convnext{' v2' if second else ''} {'-'.join(map(str, widths))}, "
            f"blocks {'-'.join(map(str, depths))}, patch {patch}"
            f"{unseen.bands(stem[1])}" + ("" if act.value == "gelu" else f", {unseen.ACTIVATIONS[act.value]}")
        ),
        build=partial(_build, options, act.value, eps.value),
        tensors=_tensors(options),
        tokens=timm_tokens,
        grid=(rows, columns),
        width=widths[-1],
        channels=stem[1],
        image_size=size.value,
        layers=stages,
        any_size=True,
        convolutional=True,
        facts=(
            act.fact,
            eps.fact,
            hints.fact("strides", f"{patch} and three times 2, none dilated", "every published ConvNeXt"),
            size.fact,
        ),
        renamed=renamed,
    )


def _tensors(options: dict[str, Any]) -> dict[str, Shape]:
    """The state dict of what `_build` makes of the same options."""
    widths, patch, bias = options["dims"], options["patch_size"], options["conv_bias"]
    tensors = convolution("stem.0", widths[0], options["in_chans"], patch, bias=bias) | norm(
        "stem.1", widths[0]
    )
    for stage, (depth, width, kernel) in enumerate(
        zip(options["depths"], widths, options["kernel_sizes"], strict=True)
    ):
        if stage or patch == 2:  # timm halves the map once more where the stem did little
            before = widths[max(stage - 1, 0)]
            tensors |= norm(f"stages.{stage}.downsample.0", before)
            tensors |= convolution(f"stages.{stage}.downsample.1", width, before, 2, bias=bias)
        for block in (f"stages.{stage}.blocks.{index}" for index in range(depth)):
            tensors |= {f"{block}.gamma": (width,)} if options["ls_init_value"] is not None else {}
            tensors |= convolution(f"{block}.conv_dw", width, 1, kernel, bias=bias)
            tensors |= norm(f"{block}.norm", width)
            tensors |= _layer(f"{block}.mlp.fc1", 4 * width, width, options)
            tensors |= norm(f"{block}.mlp.grn", 4 * width) if options["use_grn"] else {}
            tensors |= _layer(f"{block}.mlp.fc2", width, 4 * width, options)
    return {**tensors, **(norm("norm_pre", widths[-1]) if options.get("head_norm_first") else {})}


def _layer(name: str, out: int, into: int, options: dict[str, Any]) -> dict[str, Shape]:
    if options["conv_mlp"]:
        return convolution(name, out, into, 1, bias=True)
    return linear(name, out, into)


def _build(options: dict[str, Any], activation: str, eps: float) -> nn.Module:
    from timm.models.convnext import ConvNeXt
    from torch import nn

    model: Any = ConvNeXt(**options, num_classes=0, norm_eps=eps, act_layer=unseen.layer(activation))
    model.head = nn.Identity()  # its norm stands after pooling and takes no part in the map
    return model


FAMILY = Family(recognise)
