"""FAMILIES: network families, one file each: tensor shapes in, a `Network` that can be built out.

To add one: a file with ``recognise(shapes, hints)`` that ends in ``FAMILY = Family(recognise, dialects)`` and
its line below, or the same file in a package of yours with an entry point in the group
``dse_monitor.families``; docs/adding.md. Only dialects lead to a family, by its name: those of well-known
libraries are in recognition/dialects, any other comes with its family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dse_monitor.plugins import Registry

if TYPE_CHECKING:
    from dse_monitor.checkpoints.families.network import Hints, Network
    from dse_monitor.checkpoints.families.statedicts import Shape
    from dse_monitor.checkpoints.recognition.dialects import Dialect


@dataclass(frozen=True)
class Family:
    """One family of networks.

    Attributes:
        recognise: takes the shapes of an encoder's tensors, by the names they have in the network that is
            built, and what is known beside them; returns the Network. It is called with the shapes of
            anybody's files: it raises NotThisNetwork where they do not fit, and AmbiguousArchitecture where
            several networks do. Whoever keeps torch out of it until `build` spares `inspect` from loading it.
        dialects: how files name the tensors, where recognition/dialects does not list it. They find only what
            shares no tensors with an encoder that the dialects listed there find.
    """

    recognise: Callable[[Mapping[str, Shape], Hints], Network]
    dialects: tuple[Dialect, ...] = ()


FAMILIES: dict[str, str] = {
    "vit": "dse_monitor.checkpoints.families.vit:FAMILY",
    "dinov3": "dse_monitor.checkpoints.families.dinov3:FAMILY",
    "resnet": "dse_monitor.checkpoints.families.resnet:FAMILY",
    "swin": "dse_monitor.checkpoints.families.swin:FAMILY",
    "convnext": "dse_monitor.checkpoints.families.convnext:FAMILY",
}


def load(name: str) -> Family:
    """The family of that name.

    Raises:
        KeyError: there is none.
        PluginError: it is a plugin's and cannot be used.
    """
    return REGISTRY.load(name)


def dialects() -> tuple[Dialect, ...]:
    """The dialects that families bring with them; those of plugins last."""
    return tuple(dialect for family in REGISTRY.load_all().values() for dialect in family.dialects)


def check(name: str, family: Any) -> None:
    """The contract of a family that a plugin adds.

    Raises:
        TypeError: it is not a Family, or one of its fields has another type.
        ValueError: nothing leads to it, or its dialects lead elsewhere.
    """
    from dse_monitor.checkpoints.recognition.dialects import DIALECTS, Dialect

    if not isinstance(family, Family):
        raise TypeError(f"expected a Family, found {type(family).__name__}")
    if not callable(family.recognise):
        raise TypeError(f"recognise must be a function, found {family.recognise!r}")
    if not isinstance(family.dialects, tuple) or not all(isinstance(d, Dialect) for d in family.dialects):
        raise TypeError("dialects must be a tuple of Dialect")
    if not family.dialects:
        raise ValueError("dialects is empty, so no file would ever lead to it")
    taken = {dialect.name for dialect in DIALECTS}
    for dialect in family.dialects:
        if dialect.family != name:
            raise ValueError(
                f"the Dialect {dialect.name!r} names the family {dialect.family!r}, not {name!r}"
            )
        if not dialect.anchor or not dialect.needs:
            raise ValueError(f"the Dialect {dialect.name!r} lacks anchor or needs, each the name of a tensor")
        if dialect.name in taken:
            raise ValueError(f"the Dialect name {dialect.name!r} is taken by a built-in one")


REGISTRY: Registry[Family] = Registry("dse_monitor.families", "network family", FAMILIES, check)
