"""A network described exactly: what families return and encoders are built from. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.errors import AmbiguousArchitecture
from dse_monitor.facts import Fact

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dse_monitor.tokens import Tokens

IMAGE_SIZE = 224  # side for networks that take any size: what ImageNet recipes evaluate at


# What dialects call a norm that usually stands after pooling, so that it takes no part in dense tokens.
POOLED_NORM = "pooled_norm"


class NotThisNetwork(Exception):
    """The tensors are no network of this family, or one that cannot be built; says why."""


@dataclass(frozen=True)
class Heads:
    """A number of attention heads and where it was read."""

    count: int
    source: str


@dataclass(frozen=True)
class Stated:
    """A value that the file, a file beside it, or an option gives, and where it stands.

    Attributes:
        value: as `recognition.statements` gives values of that name.
        source: where it stands, in words.
        rival: what a place of the same standing says instead, and which place; empty if none does.
        read_before: earlier versions of this package read it there too.
        assumed: it stands in a library for networks of that name, and nothing says that this file follows it.
    """

    value: Any
    source: str
    rival: str = ""
    read_before: bool = False
    assumed: bool = False


# The option that settles what is stated twice; --arch does for the rest.
_SETTLED_BY = {
    "mean": "--mean", "std": "--std", "interpolation": "--interpolation", "num_heads": "--num-heads",
    "image_size": "--image-size",
}  # fmt: skip


def say(stated: Mapping[str, Stated], name: str) -> Stated | None:
    """What is stated under a name; None if nothing is.

    Raises:
        AmbiguousArchitecture: two places of the same standing disagree.
    """
    found = stated.get(name)
    if found is not None and found.rival:
        raise AmbiguousArchitecture(
            f"two places disagree about {name}: {found.source} says {found.value}, {found.rival}. "
            f"Settle it with {_SETTLED_BY.get(name, '--arch')}"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What is known about a network beside the shapes of its tensors.

    Attributes:
        num_heads: the user's answer; beats everything.
        recorded_heads: read from a configuration in or beside the file.
        heads_by_width: heads of the models the training code defines, by embedding width.
        heads_origin: whose models those are, in words.
        norm_eps: epsilon of the LayerNorms in the library that names tensors so; None means the family's
            usual one. One that is stated comes before it.
        image_size: height and width of the images the network was made for, pixels; None if unknown.
        stated: what else the file, a file beside it, or an option says, by the names that
            recognition/statements gives.
        code: whose networks these are, in words, where the training code defines them, so that what tensors
            do not show is known from it; else empty.
        details: further values of a configuration that a family understands, by its own names.
    """

    num_heads: int | None = None
    recorded_heads: Heads | None = None
    heads_by_width: Mapping[int, int] = field(default_factory=dict)
    heads_origin: str = ""
    norm_eps: float | None = None
    image_size: tuple[int, int] | None = None
    stated: Mapping[str, Stated] = field(default_factory=dict)
    code: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def say(self, name: str) -> Stated | None:
        """What is stated under a name; None if nothing is.

        Raises:
            AmbiguousArchitecture: two places of the same standing disagree.
        """
        return say(self.stated, name)

    def fact(self, name: str, value: str, evidence: str) -> Fact:
        """A property that nobody states: known from the training code, or assumed on some evidence."""
        return Fact(name, value, self.code or evidence, assumed=not self.code)


@dataclass(frozen=True)
class Piece:
    """How one tensor of the network is made from tensors of the file.

    Attributes:
        sources: names in the file's state dict, without prefix and wrappers.
        shape: shape of the result.
        make: turns the sources, in order, into the result.
    """

    sources: tuple[str, ...]
    shape: Shape
    make: Callable[[list[Tensor]], Tensor] = lambda tensors: tensors[0]


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network, exactly: its tensors have these names and no others.

    Attributes:
        family: ``vit``, ``dinov3``, ``resnet``, ``swin`` or ``convnext``; ``timm``, ``transformers`` or
            ``own`` of a network built by name.
        description: the network in words, as records and `inspect` print it.
        build: constructs the module (parameters untouched by the file yet).
        tensors: names and shapes of its state dict, in its order: what `build` makes, known without building,
            so that `inspect` needs no torch. A family may leave it empty; the network is then built to see.
        buffers: those of them that are not parameters.
        tokens: takes the module, images [B, C, H, W] and a layer (None: the last); returns its tokens.
        grid: rows and columns of the tokens at `image_size`.
        width: D.
        channels: C.
        image_size: height and width of the images it wants, pixels.
        any_size: whether other image sizes are possible.
        layers: layers whose tokens can be asked for, numbered from 1; 0 where only the last can.
        convolutional: whether channels-last memory is worth it.
        heads: attention heads as used, for records; empty for convolutional networks.
        facts: what changes its tokens and is not to be seen in its tensors.
        computed: tensors that need not be in a file: the module makes them, and keeps them where they lack.
        defaults: how images are prepared for it where nothing of the file says so: as the library that
            defines it does, by the names of `Hints.stated`.
        outside: tensors of its class that take no part in its tokens, such as a classifier's.
        renamed: pieces that replace same-named ones (folding, splitting), by name in the network; their
            sources are names in the network too.
        notes: what was assumed, in full sentences.
        transform: makes what the network sees of an image's path, [C, H, W]; None: see `Preprocessing`.
        transform_id: what tells it from other transforms; empty without one.
    """

    family: str
    description: str
    build: Callable[[], nn.Module]
    tensors: Mapping[str, Shape] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    tokens: Callable[[nn.Module, Tensor, int | None], Tokens]
    grid: tuple[int, int]
    width: int
    channels: int = 3
    image_size: tuple[int, int]
    any_size: bool = False
    layers: int = 0
    convolutional: bool = False
    heads: str = ""
    facts: tuple[Fact, ...] = ()
    computed: frozenset[str] = frozenset()
    defaults: Mapping[str, Stated] = field(default_factory=dict)
    outside: frozenset[str] = frozenset()
    renamed: Mapping[str, Piece] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    transform: Callable[[Path], Any] | None = None
    transform_id: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens per image at `image_size`."""
        return math.prod(self.grid)

    @property
    def parameters(self) -> int:
        """Numbers it holds, without buffers."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if name not in self.buffers)


def count_blocks(shapes: Mapping[str, Shape], prefix: str) -> int:
    """Number of consecutive children ``prefix0.``, ``prefix1.``, ... among the names.

    Raises:
        NotThisNetwork: a number is missing in between.
    """
    found = {name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)}
    numbers = {int(part) for part in found if part.isascii() and part.isdigit()}
    if numbers != set(range(len(numbers))):
        missing = next(number for number in range(len(numbers)) if number not in numbers)
        raise NotThisNetwork(f"{prefix}{missing} is missing although {prefix}{max(numbers)} is there")
    return len(numbers)
