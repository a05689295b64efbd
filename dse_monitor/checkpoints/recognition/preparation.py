"""How images are prepared for a network: as options, the file, or a file beside it say; else as is usual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dse_monitor.checkpoints.families.network import Network, Stated
from dse_monitor.errors import AmbiguousArchitecture
from dse_monitor.facts import Fact
from dse_monitor.preprocessing import Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's, used by all sixteen official recipes
IMAGENET_STD = (0.229, 0.224, 0.225)
_USUAL = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic", "crop_mode": "center"}
_EVIDENCE = {
    "mean": "that of ImageNet, as in most recipes",
    "std": "that of ImageNet, as in most recipes",
    "interpolation": "as in most recipes",
    "crop_mode": "the centre of the picture, as in most recipes",
    "resize": "256 for 224, as in most recipes",
}


def preprocessing(network: Network, stated: Mapping[str, Stated]) -> tuple[Preprocessing, tuple[Fact, ...]]:
    """How images are prepared, and where each part of it was read.

    Args:
        network: the network, whose image size is settled.
        stated: what options, the file, or a file beside it say: "mean" and "std" (tuples of one number per
            channel, or of one for all), "interpolation", "crop_mode", "crop_pct" (share of the resized
            picture that is kept) or "resize" ((height, width) covered before cropping).

    Raises:
        AmbiguousArchitecture: nothing says how a network is normalised that takes no three channels.
    """
    facts: list[Fact] = []
    values: dict[str, Any] = {}
    stated = {**network.defaults, **stated}
    for name, usual in _USUAL.items():
        if name in stated:
            values[name] = stated[name].value
            source = stated[name].source
        else:
            values[name], source = usual, _EVIDENCE[name]
        if name in ("mean", "std"):
            values[name] = _for_channels(name, tuple(values[name]), network.channels, name in stated, source)
        assumed = name not in stated or stated[name].assumed
        facts.append(Fact("crop" if name == "crop_mode" else name, _said(values[name]), source, assumed))
    size = network.image_size
    resize, source = None, ""
    if "resize" in stated:
        resize, source = stated["resize"].value, stated["resize"].source
    elif "crop_pct" in stated:
        share = float(stated["crop_pct"].value)
        resize = tuple(max(side, int(side / share)) for side in size)  # timm rounds down
        source = stated["crop_pct"].source
    made = Preprocessing(channels=network.channels, image_size=size, resize=resize, **values)
    if made.crop_mode == "center":
        covered = " x ".join(map(str, made.covered))
        source, assumed = source or _EVIDENCE["resize"], not source
        facts.append(Fact("resize", f"to {covered} px before cropping", source, assumed))
    return made, tuple(facts)


def _for_channels(
    name: str, values: tuple[float, ...], channels: int, stated: bool, source: str
) -> tuple[float, ...]:
    if len(values) == 1:
        return values * channels
    if len(values) != channels:
        found = (
            f"{source} gives {len(values)} numbers for the {name}" if stated else "nothing says the " + name
        )
        raise AmbiguousArchitecture(
            f"the network takes {channels} channel{'s' * (channels != 1)}, and {found} of its images. Pass "
            "--mean and --std, one number per channel or one for all, of values scaled to [0, 1]"
        )
    return values


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{number:g}" for number in value)
    return str(value)
