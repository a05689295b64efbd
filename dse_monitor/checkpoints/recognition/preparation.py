"""How images are prepared for a network: as options, the file, or a file beside it say; else as is usual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dse_monitor.checkpoints.families.network import Network, NotThisNetwork, Stated, say
from dse_monitor.checkpoints.layouts.statistics import IMAGENET_MEAN, IMAGENET_STD
from dse_monitor.errors import AmbiguousArchitecture
from dse_monitor.facts import Fact
from dse_monitor.preprocessing import CROP_MODES, Preprocessing, default_resize

_USUAL = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic", "crop_mode": "center"}
_EVIDENCE = {
    "mean": "that of ImageNet, as in most recipes",
    "std": "that of ImageNet, as in most recipes",
    "interpolation": "as in most recipes",
    "crop_mode": "as in most recipes",
    "resize": "256 for 224, as in most recipes",
}
_LABELS = {"crop_mode": "crop"}  # names of facts, where they are not those of the fields
_CROPS = {
    "center": "the centre of the picture",
    "center_floor": "the centre of the picture, half a pixel rounded down",
    "squash": "squashed: resized without keeping its ratio",
}


def preprocessing(network: Network, stated: Mapping[str, Stated]) -> tuple[Preprocessing, tuple[Fact, ...]]:
    """How images are prepared, and where each part of it was read.

    Args:
        network: the network, whose image size is settled.
        stated: what options, the file, or a file beside it say, by the names that statements.py gives.

    Raises:
        AmbiguousArchitecture: nothing says how a network is normalised that takes no three channels, or two
            places say it differently.
        NotThisNetwork: its images are of a kind that is not made here.
    """
    order = say(stated, "channel_order")
    if order is not None and order.value != "RGB":
        raise NotThisNetwork(
            f"{order.source} leaves its images in the order {order.value}, and images here are RGB"
        )
    facts: list[Fact] = []
    values: dict[str, Any] = {}
    stated = {**network.defaults, **stated}
    for name, usual in _USUAL.items():
        found = say(stated, name)
        values[name], source = (usual, _EVIDENCE[name]) if found is None else (found.value, found.source)
        if name in ("mean", "std"):
            values[name] = _for_channels(name, values[name], network.channels, found)
        facts.append(Fact(_LABELS.get(name, name), _said(values[name]), source, _assumed(found)))
    if values["crop_mode"] not in CROP_MODES:
        raise NotThisNetwork(
            f"{stated['crop_mode'].source} says {values['crop_mode']!r}, and images are cropped here as "
            "center or squash"
        )
    made = Preprocessing(
        channels=network.channels,
        image_size=network.image_size,
        resize=_resize(network.image_size, stated),
        **values,
    )
    if made.crop_mode != "squash" or made.covered != made.image_size:
        found = say(stated, "resize") or say(stated, "crop_pct")
        covered = " x ".join(map(str, made.covered))
        source = _EVIDENCE["resize"] if found is None else found.source
        facts.append(Fact("resize", f"to {covered} px before its centre is cut out", source, _assumed(found)))
    return made, tuple(facts)


def _assumed(found: Stated | None) -> bool:
    return found is None or found.assumed


def _resize(size: tuple[int, int], stated: Mapping[str, Stated]) -> tuple[int, int] | None:
    """Height and width to cover before a crop of `size`; None where nothing states it.

    A resizing that belongs to a crop of another size keeps its proportion to the crop.
    """
    resize, share, crop = (say(stated, name) for name in ("resize", "crop_pct", "image_size"))
    if resize is not None:
        made_for = size if crop is None else crop.value
        if made_for == size and all(outer >= inner for outer, inner in zip(resize.value, size, strict=True)):
            return resize.value
        largest = max(1.0, max(outer / inner for outer, inner in zip(resize.value, made_for, strict=True)))
        return (round(size[0] * largest), round(size[1] * largest)) if largest < 10 else default_resize(size)
    if share is not None:
        return (max(size[0], int(size[0] / share.value)), max(size[1], int(size[1] / share.value)))  # as timm
    return None


def _for_channels(
    name: str, values: tuple[float, ...], channels: int, stated: Stated | None
) -> tuple[float, ...]:
    if stated is not None and len(values) == 1:
        return tuple(values) * channels
    if len(values) != channels:
        found = (
            f"nothing says the {name}"
            if stated is None
            else f"{stated.source} gives {len(values)} numbers for the {name}"
        )
        raise AmbiguousArchitecture(
            f"the network takes {channels} channel{'s' * (channels != 1)}, and {found} of its images. Pass "
            "--mean and --std, one number per channel or one for all, of values scaled to [0, 1]"
        )
    return tuple(values)


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{number:g}" for number in value)
    return _CROPS.get(value, str(value))
