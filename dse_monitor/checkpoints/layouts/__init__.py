"""LAYOUTS: the training codes whose checkpoints are known, one file each. No torch is imported here.

To add one: a file that holds a :class:`~dse_monitor.checkpoints.layouts.layout.Layout` and its line below, or
the same file in a package of yours with an entry point in the group ``dse_monitor.layouts``; docs/adding.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.plugins import Registry

# A file is taken for the first entry that recognises it and finds an encoder.
LAYOUTS: dict[str, str] = {
    "dse-train": "dse_monitor.checkpoints.layouts.dse_train:LAYOUT",
    # The sixteen methods of the DSE paper; the default network is the one its numbers come from.
    "barlowtwins": "dse_monitor.checkpoints.layouts.barlowtwins:LAYOUT",
    "byol": "dse_monitor.checkpoints.layouts.byol:LAYOUT",
    "densecl": "dse_monitor.checkpoints.layouts.densecl:LAYOUT",
    "dino": "dse_monitor.checkpoints.layouts.dino:LAYOUT",
    "esvit": "dse_monitor.checkpoints.layouts.esvit:LAYOUT",
    "ibot": "dse_monitor.checkpoints.layouts.ibot:LAYOUT",
    "ijepa": "dse_monitor.checkpoints.layouts.ijepa:LAYOUT",
    "mae": "dse_monitor.checkpoints.layouts.mae:LAYOUT",
    "mec": "dse_monitor.checkpoints.layouts.mec:LAYOUT",
    "mocov3": "dse_monitor.checkpoints.layouts.mocov3:LAYOUT",
    "mugs": "dse_monitor.checkpoints.layouts.mugs:LAYOUT",
    "resa": "dse_monitor.checkpoints.layouts.resa:LAYOUT",
    "simsiam": "dse_monitor.checkpoints.layouts.simsiam:LAYOUT",
    "swav": "dse_monitor.checkpoints.layouts.swav:LAYOUT",
    "vicreg": "dse_monitor.checkpoints.layouts.vicreg:LAYOUT",
    "vicregl": "dse_monitor.checkpoints.layouts.vicregl:LAYOUT",
    # Other people's training codes and libraries.
    "dinov3": "dse_monitor.checkpoints.layouts.dinov3:LAYOUT",
    "dinov2": "dse_monitor.checkpoints.layouts.dinov2:LAYOUT",
    "moco": "dse_monitor.checkpoints.layouts.moco:LAYOUT",
    "timm": "dse_monitor.checkpoints.layouts.timm:LAYOUT",
    "torchvision": "dse_monitor.checkpoints.layouts.torchvision:LAYOUT",
    "swin": "dse_monitor.checkpoints.layouts.swin:LAYOUT",
    "lightly-train": "dse_monitor.checkpoints.layouts.lightly_train:LAYOUT",
    "solo-learn": "dse_monitor.checkpoints.layouts.solo_learn:LAYOUT",
    "lightning": "dse_monitor.checkpoints.layouts.lightning:LAYOUT",
    "mmpretrain": "dse_monitor.checkpoints.layouts.mmpretrain:LAYOUT",
    "vissl": "dse_monitor.checkpoints.layouts.vissl:LAYOUT",
    "huggingface": "dse_monitor.checkpoints.layouts.huggingface:LAYOUT",
    "mae-pytorch": "dse_monitor.checkpoints.layouts.mae_pytorch:LAYOUT",
    "ema-pytorch": "dse_monitor.checkpoints.layouts.ema_pytorch:LAYOUT",
    "plain": "dse_monitor.checkpoints.layouts.plain:LAYOUT",
}


def by_name(name: str, found: frozenset[str] = frozenset()) -> Layout:
    """The entry called `name`, for a file with these marks.

    Raises:
        KeyError: there is none.
        PluginError: it is a plugin's and cannot be used.
    """
    return REGISTRY.load(name).fitted(found)


def known() -> list[Layout]:
    """Every entry that can be used: the built-in ones in the order of LAYOUTS, then those of plugins."""
    return list(REGISTRY.load_all().values())


def matching(found: frozenset[str]) -> list[Layout]:
    """Entries that recognise a file with these marks, in the order in which they are to be tried.

    That is the order of LAYOUTS. A plugin's entry comes before those of which it needs every mark and others
    besides, and after the rest: it cannot take files from an entry that knows something else of them.
    """
    fitting = [layout for layout in known() if layout.recognises(found)]
    order = [layout for layout in fitting if layout.name in REGISTRY.table]
    for layout in fitting[len(order) :]:
        place = len(order)
        while place and set(order[place - 1].needs) < set(layout.needs):
            place -= 1
        order.insert(place, layout)
    return [layout.fitted(found) for layout in order]


def table() -> list[dict[str, str]]:
    """Every entry as one row of text, for `dse-monitor layouts`.

    Returns:
        Rows with the keys name, title, origin, example, evaluated, others, epochs and traps.
    """
    rows = []
    for layout in known():
        first, *others = layout.networks
        counts = (
            "stored epoch counts from zero" if layout.epochs_from_field else "stored epoch = finished epochs"
        )
        rows.append(
            {
                "name": layout.name,
                "title": layout.title,
                "origin": layout.origin,
                "example": layout.example,
                "evaluated": f"{first.name} at {first.location}",
                "others": ", ".join(f"{other.name} at {other.location}" for other in others),
                "epochs": counts,
                "traps": " ".join(f"{trap}." for trap in layout.traps),
            }
        )
    return rows


def check(name: str, layout: Any) -> None:
    """The contract of an entry that a plugin adds.

    Raises:
        TypeError: it is not a Layout, or one of its fields has another type.
        ValueError: it is one that would be found under another name, take any file, or find no encoder.
    """
    if not isinstance(layout, Layout):
        raise TypeError(f"expected a Layout, found {type(layout).__name__}")
    if layout.name != name:
        raise ValueError(f"the Layout calls itself {layout.name!r}; it must be {name!r}, as its entry point")
    for field in ("title", "origin", "example", "evaluated", "evaluated_field"):
        if not isinstance(getattr(layout, field), str):
            raise TypeError(f"{field} must be a str, found {getattr(layout, field)!r}")
    for field in ("needs", "lacks", "dialects", "drop", "traps"):
        if not _are(str, getattr(layout, field)):
            raise TypeError(f"{field} must be a tuple of str, found {getattr(layout, field)!r}")
    for field in ("mean", "std"):
        if not _are(float, getattr(layout, field)):
            raise TypeError(f"{field} must be a tuple of float, found {getattr(layout, field)!r}")
    if not layout.needs:
        raise ValueError(
            "needs is empty, so the Layout would take every file; name marks only its files have"
        )
    if not layout.networks or not _are(NetworkAt, layout.networks):
        raise ValueError("networks must be a tuple of at least one NetworkAt")


def _are(kind: type, values: Iterable[Any]) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, kind) for value in values)


REGISTRY: Registry[Layout] = Registry("dse_monitor.layouts", "checkpoint layout", LAYOUTS, check)
