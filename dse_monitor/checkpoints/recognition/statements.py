"""What a checkpoint, a file beside it, or the user says about the network: values, each with where it stands.

Only plain values are looked at; nothing of a configuration is executed or imported. Who writes what where is
in sources/. What the user says comes first, then the file itself, then files beside it; within each the
more specific place. A place that says otherwise and comes later is named beside the value that is taken; two
places alike are left for whoever needs the value to refuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from dse_monitor.checkpoints.archive import Archive
from dse_monitor.checkpoints.families.network import Stated
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.recognition.sources import hugging_face, mmlab, modules, training
from dse_monitor.checkpoints.recognition.sources.values import Statement

_CONTRADICTED = "contradicted"


def read(archive: Archive, options: ReadingOptions) -> dict[str, Stated]:
    """Everything stated, by name.

    Names: "mean" and "std" (tuples), "interpolation" (Pillow's name), "crop_mode", "crop_pct" (share of each
    side that a crop keeps), "resize" (height, width), "image_size" (height, width), "own_image_size"
    (likewise, of the images that the network's table of positions was made for), "channel_order", "arch"
    (a timm model), "num_heads", "heads_by_width" (a mapping), "activation" (a key of
    families.unseen.ACTIVATIONS, or what it is called where it is none), "norm_eps", "rope_theta", "in_chans",
    "strides" (what is unusual about a residual network's; empty if nothing is).
    """
    recorded = chain(
        modules.read(archive.tree),
        mmlab.read(archive.tree),
        training.read(archive.tree, archive.sidecars),
        hugging_face.read(archive.sidecars),
    )
    return {**_settled(recorded), **dict(_asked(options))}


def _settled(statements: Iterable[Statement]) -> dict[str, Stated]:
    """One value for each name, with the first that contradicts it."""
    found: dict[str, Stated] = {}
    standings: dict[str, str] = {}
    for one in statements:
        first = found.setdefault(one.name, Stated(one.value, one.source, read_before=one.read_before))
        standing = standings.setdefault(one.name, one.standing)
        if first.value == one.value or standing is _CONTRADICTED:
            continue
        otherwise = f"{one.source} says {_shown(one.value)}"
        if standing and standing == one.standing:
            found[one.name] = dataclasses.replace(first, rival=otherwise)
        else:
            found[one.name] = dataclasses.replace(first, source=f"{first.source}; {otherwise}")
        standings[one.name] = _CONTRADICTED
    return found


def _shown(value: Any) -> str:
    return ", ".join(f"{item:g}" for item in value) if isinstance(value, tuple) else str(value)[:60]


def _asked(options: ReadingOptions) -> Iterator[tuple[str, Stated]]:
    given: dict[str, Any] = {
        "mean": options.mean,
        "std": options.std,
        "interpolation": options.interpolation,
        "image_size": options.image_size,
    }
    for name, value in given.items():
        if value not in (None, ()):
            yield name, Stated(value, f"--{name.replace('_', '-')}")


__all__ = ["read"]
