"""Residual networks of any width and depth: basic and bottleneck blocks, wide, grouped, three kinds of stem.

Shapes: a block's ``conv1`` is [w, in, 1, 1] in a bottleneck and [planes, in, 3, 3] in a basic block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families import Family, unseen
from dse_monitor.checkpoints.families.layers import BUFFERS, batch_norm, convolution
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
    from torch import nn

NORM_EPS = 1e-5  # of BatchNorm
EXPANSION = 4  # a bottleneck's output channels per plane, in every published residual network
SMALL_IMAGE = 32  # pixels; side of CIFAR images, for which the 3x3 stem was made
DEPTHS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18", (False, (3, 4, 6, 3)): "resnet34", (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101", (True, (3, 8, 36, 3)): "resnet152",
}  # fmt: skip


def recognise(shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network of these tensors (torchvision's names, which are timm's).

    Raises:
        NotThisNetwork: no residual network that can be built.
    """
    plausible(shapes)
    built = ("relu",) if hints.details.get("relu_inside") else tuple(unseen.ACTIVATIONS)
    act = unseen.activation(hints, "relu", "nearly every published residual network", built)
    for key in ("downsample_in_first_stage", "downsample_in_bottleneck"):
        if hints.details.get(key):
            raise NotThisNetwork(f"its configuration sets {key}, which moves strides to where timm has none")
    stages = count_stages(shapes)
    if stages != 4:
        raise NotThisNetwork(f"it has {stages} stages named layer1, layer2, ...; a ResNet here has four")
    blocks = tuple(count_blocks(shapes, f"layer{stage}.") for stage in range(1, stages + 1))
    bottleneck = "layer1.0.conv3.weight" in shapes
    stem = _Stem(shapes, hints)
    if "bn1.running_mean" not in shapes and "bn1.weight" in shapes:
        raise NotThisNetwork("its norms keep no running statistics, so they are not BatchNorm")
    out = "conv3" if bottleneck else "conv2"
    outputs = [_shape(shapes, f"layer{stage}.0.{out}.weight")[0] for stage in range(1, stages + 1)]
    channels = tuple(width // EXPANSION if bottleneck else width for width in outputs)
    cardinality, base_width = _widths(shapes, channels) if bottleneck else (1, 64)
    options: dict[str, Any] = dict(
        channels=channels, cardinality=cardinality, base_width=base_width, **_shortcut(shapes, stages)
    )
    attention = _squeeze(shapes)
    strides = _strides(stem, hints)
    stride = stem.stride * 2 ** (stages - 1)
    usual = SMALL_IMAGE if stem.small else IMAGE_SIZE
    size = unseen.free_size(hints, usual)
    rows, columns = (math.ceil(side / stride) for side in size.value)
    tensors = _tensors(bottleneck, blocks, options, stem, attention)
    return Network(
        family="resnet",
        description=_words(
            bottleneck, blocks, channels, cardinality, base_width, stem, bool(attention), act.value
        ),
        build=partial(_build, bottleneck, blocks, options, stem, attention, act.value),
        tensors=tensors,
        buffers=frozenset(name for name in tensors if name.endswith(BUFFERS)),
        tokens=timm_tokens,
        grid=(rows, columns),
        width=outputs[-1],
        channels=stem.channels,
        image_size=size.value,
        layers=stages + 1,
        any_size=True,
        convolutional=True,
        facts=(
            act.fact,
            hints.fact("norm epsilon", f"{NORM_EPS:g}", "that of BatchNorm in torch and torchvision"),
            *_stem_facts(stem, hints),
            strides,
            size.fact,
        ),
    )


def _strides(stem: _Stem, hints: Hints) -> Fact:
    """Where the map is halved: nothing of it is in the tensors.

    Raises:
        NotThisNetwork: the configuration states others than are built.
    """
    first = f"{stem.stride} by the stem" + ("" if stem.small else " with max pooling")
    value = f"{first}, 2 at the start of stages 2 to 4, none dilated, no anti-aliasing"
    stated = hints.say("strides")
    if stated is None:
        return hints.fact("downsampling", value, "the published network of these shapes")
    if stated.value:
        raise NotThisNetwork(
            f"{stated.source} sets {stated.value}, which cannot be built here; name it with --arch"
        )
    return Fact("downsampling", value, stated.source)


def _stem_facts(stem: _Stem, hints: Hints) -> list[Fact]:
    """What a 3x3 stem does, which may be made for images of any size."""
    if not stem.small:
        return []
    padding = ", padding 2" if stem.padding == 2 else ""
    evidence = "a single 3x3 convolution, as for CIFAR images"
    return [hints.fact("stem", f"stride 1, no max pooling{padding}", evidence)]


def count_stages(shapes: Mapping[str, Shape]) -> int:
    """Number of consecutive stages ``layer1``, ``layer2``, ..."""
    stages = 0
    while f"layer{stages + 1}.0.conv1.weight" in shapes:
        stages += 1
    return stages


class _Stem:
    """The layers before the first stage.

    Attributes:
        channels: of the images.
        width: channels that enter the first stage.
        deep: widths of the three 3x3 convolutions, or empty for a single convolution.
        small: whether it is the single 3x3 convolution made for small images.
        padding: of the single convolution.
        stride: of stem and max pooling together.
    """

    def __init__(self, shapes: Mapping[str, Shape], hints: Hints):
        self.deep: tuple[int, ...] = ()
        self.small = False
        self.padding = 3
        self.stride = 4
        if "conv1.0.weight" in shapes:
            convolutions = [_shape(shapes, f"conv1.{index}.weight") for index in (0, 3, 6)]
            if any(shape[2:] != (3, 3) for shape in convolutions):
                raise NotThisNetwork("the deep stem is not made of three 3x3 convolutions")
            self.deep = tuple(shape[0] for shape in convolutions)
            self.width, self.channels = self.deep[-1], convolutions[0][1]
            return
        self.width, self.channels, height, kernel = _shape(shapes, "conv1.weight")
        if height != kernel or kernel not in (3, 7):
            raise NotThisNetwork(f"the first convolution is {height}x{kernel}; 7x7 and 3x3 stems are known")
        if kernel == 3:
            self.small, self.stride = True, 1
            self.padding = int(hints.details.get("small_stem_padding", 1))


def _shape(shapes: Mapping[str, Shape], name: str) -> Shape:
    shape = shapes.get(name, ())
    if len(shape) != 4:
        raise NotThisNetwork(
            f"{name} is {'missing' if not shape else list(shape)}; a convolution was expected"
        )
    return shape


def _widths(shapes: Mapping[str, Shape], channels: tuple[int, ...]) -> tuple[int, float]:
    """Groups of the 3x3 convolutions, and channels per group for 64 planes (timm's ``base_width``)."""
    found: set[tuple[int, float]] = set()
    for stage, planes in enumerate(channels, 1):
        width, per_group = _shape(shapes, f"layer{stage}.0.conv2.weight")[:2]
        if width % per_group or not planes:
            raise NotThisNetwork(f"layer{stage}.0.conv2 has {width} channels in groups of {per_group}")
        found.add((width // per_group, per_group * 64 / planes))
    if len({groups for groups, _ in found}) > 1 or max(b for _, b in found) - min(b for _, b in found) > 1e-6:
        raise NotThisNetwork(f"its stages have bottlenecks of different proportions: {sorted(found)}")
    groups, base = found.pop()
    # timm truncates planes * base_width / 64; a small surplus keeps an inexact quotient from falling short
    return groups, int(base) if base.is_integer() else base * (1 + 1e-9)


def _shortcut(shapes: Mapping[str, Shape], stages: int) -> dict[str, Any]:
    """How a stage's first block matches its input: a strided convolution, or pooling and a convolution."""
    for stage in range(1, stages + 1):
        if len(shapes.get(f"layer{stage}.0.downsample.1.weight", ())) == 4:
            return {"avg_down": True}
        kernel = shapes.get(f"layer{stage}.0.downsample.0.weight", ())
        if len(kernel) == 4 and kernel[-1] != 1:
            return {"down_kernel_size": kernel[-1]}
    return {}


def _squeeze(shapes: Mapping[str, Shape]) -> float:
    """Share of channels a squeeze-and-excitation layer keeps, or 0 without one."""
    squeeze = shapes.get("layer1.0.se.fc1.weight", ())
    return squeeze[0] / squeeze[1] if len(squeeze) == 4 else 0.0


def _words(
    bottleneck: bool,
    blocks: tuple[int, ...],
    channels: tuple[int, ...],
    cardinality: int,
    base_width: float,
    stem: _Stem,
    attention: bool,
    activation: str,
) -> str:
    usual = channels == (64, 128, 256, 512) and cardinality == 1 and base_width == 64 and stem.width == 64
    name = DEPTHS.get((bottleneck, blocks)) if usual and not attention else None
    words = [name or f"resnet, {'bottleneck' if bottleneck else 'basic'} blocks {'-'.join(map(str, blocks))}"]
    if not usual:
        words.append(f"planes {'-'.join(map(str, channels))}")
        if cardinality != 1:
            words.append(f"{cardinality} groups")
        if base_width != 64:
            words.append(f"base width {base_width:g}")
    if attention:
        words.append("squeeze-excitation")
    if stem.small:
        words.append("3x3 stem")
    if stem.deep:
        words.append("deep stem")
    if activation != "relu":
        words.append(unseen.ACTIVATIONS[activation])
    return ", ".join(words) + unseen.bands(stem.channels)


def _tensors(
    bottleneck: bool, blocks: tuple[int, ...], options: dict[str, Any], stem: _Stem, attention: float
) -> dict[str, Shape]:
    """The state dict of what `_build` makes of the same arguments."""
    into, tensors = _stem_tensors(stem)
    for stage, (planes, count) in enumerate(zip(options["channels"], blocks, strict=True), 1):
        out = planes * EXPANSION if bottleneck else planes
        for index in range(count):
            block = f"layer{stage}.{index}"
            if bottleneck:
                groups = options["cardinality"]
                width = int(math.floor(planes * (options["base_width"] / 64)) * groups)
                layers = ((width, into, 1), (width, width // groups, 3), (out, width, 1))
            else:
                layers = ((planes, into, 3), (planes, planes, 3))
            for number, (channels, inside, kernel) in enumerate(layers, 1):
                tensors |= convolution(f"{block}.conv{number}", channels, inside, kernel)
                tensors |= batch_norm(f"{block}.bn{number}", channels)
            if attention:
                kept = max(1, int(out * attention + 0.5))  # as timm rounds it
                tensors |= convolution(f"{block}.se.fc1", kept, out, 1, bias=True)
                tensors |= convolution(f"{block}.se.fc2", out, kept, 1, bias=True)
            if not index and (stage > 1 or into != out):
                tensors |= _shortcut_tensors(f"{block}.downsample", out, into, stage, options)
            into = out
    return tensors


def _stem_tensors(stem: _Stem) -> tuple[int, dict[str, Shape]]:
    """Channels that enter the first stage as timm builds it, and the tensors before it."""
    if not stem.deep:
        kernel = 3 if stem.small else 7
        return stem.width, convolution("conv1", stem.width, stem.channels, kernel) | batch_norm(
            "bn1", stem.width
        )
    second = stem.deep[1]
    first = 3 * (second // 4) if stem.deep[0] != second else second
    tensors: dict[str, Shape] = {}
    for place, out, into in ((0, first, stem.channels), (3, second, first)):
        tensors |= convolution(f"conv1.{place}", out, into, 3) | batch_norm(f"conv1.{place + 1}", out)
    tensors |= convolution("conv1.6", 2 * second, second, 3) | batch_norm("bn1", 2 * second)
    return 2 * second, tensors


def _shortcut_tensors(
    name: str, out: int, into: int, stage: int, options: dict[str, Any]
) -> dict[str, Shape]:
    if options.get("avg_down"):  # pooling has the first place and no tensors
        return convolution(f"{name}.1", out, into, 1) | batch_norm(f"{name}.2", out)
    kernel = options.get("down_kernel_size", 1) if stage > 1 else 1
    return convolution(f"{name}.0", out, into, kernel) | batch_norm(f"{name}.1", out)


def _build(
    bottleneck: bool,
    blocks: tuple[int, ...],
    options: dict[str, Any],
    stem: _Stem,
    attention: float,
    activation: str,
) -> nn.Module:
    from timm.layers.squeeze_excite import SEModule
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet, make_blocks
    from torch import nn

    block: Any = Bottleneck if bottleneck else BasicBlock
    extra: dict[str, Any] = {}
    if stem.deep:
        tiered = stem.deep[0] != stem.deep[1]
        extra = dict(stem_type="deep_tiered" if tiered else "deep", stem_width=stem.deep[1])
    block_options: dict[str, Any] = {}
    if attention:
        block_options = dict(attn_layer=partial(SEModule, rd_ratio=attention, rd_divisor=1))
    act = unseen.layer(activation)
    model = ResNet(
        block,
        blocks,
        in_chans=stem.channels,
        num_classes=0,
        act_layer=act,
        zero_init_last=False,
        block_args=block_options,
        **options,
        **extra,
    )
    if stem.deep:
        return model
    if (
        stem.width != 64
    ):  # timm's single-convolution stem always has 64 channels: build the stages for this one
        kept = {key: value for key, value in options.items() if key != "channels"}
        stages, _ = make_blocks(
            (block,) * len(blocks),
            options["channels"],
            blocks,
            stem.width,
            act_layer=act,
            norm_layer=nn.BatchNorm2d,
            **kept,
            **block_options,
        )
        for name, stage in stages:
            model.add_module(name, stage)
        model.bn1 = nn.BatchNorm2d(stem.width)
    if stem.small:
        model.conv1 = nn.Conv2d(stem.channels, stem.width, 3, stride=1, padding=stem.padding, bias=False)
        model.maxpool = nn.Identity()
    elif stem.width != 64:
        model.conv1 = nn.Conv2d(stem.channels, stem.width, 7, stride=2, padding=3, bias=False)
    return model


FAMILY = Family(recognise)
