"""The sixteen methods by name; a module is imported when its method is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dse_monitor.trainers.method import Method

METHODS: dict[str, str] = {
    "mocov3": "MoCoV3",
    "densecl": "DenseCL",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "swav": "SwAV",
    "dino": "DINO",
    "esvit": "EsViT",
    "ibot": "IBOT",
    "mugs": "Mugs",
    "mae": "MAE",
    "ijepa": "IJEPA",
    "barlowtwins": "BarlowTwins",
    "vicreg": "VICReg",
    "vicregl": "VICRegL",
    "mec": "MEC",
    "resa": "ReSA",
}


def load(name: str) -> type[Method]:
    """The class of a method: ``METHODS[name]`` of ``trainers/methods/<name>.py``.

    Raises:
        ValueError: no such method; the message lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), METHODS[name])
