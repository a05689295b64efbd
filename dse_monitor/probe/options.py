"""What `dse-monitor probe` is asked: which labelled images, and how they are used. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dse_monitor.evaluation.config import read_bands, read_size
from dse_monitor.flags import ADVANCED, Flag
from dse_monitor.preprocessing import pair


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Labelled images, how they are used, and how a checkpoint is recognised."""

    images: Annotated[Path, Flag(name="labelled", metavar="DIR", aliases=("--images",))]
    """Folder of labelled images."""
    masks: Annotated[Path, Flag(metavar="DIR")]
    """Folder of masks under the same names (any suffix): one channel, the pixel's value is its class."""
    num_images: int = 1000
    """Pairs used: a seeded sample."""
    image_size: Annotated[
        tuple[int, int] | None,
        Flag(metavar="PIXELS", default="DSE's in a watched run, else the network's own", read=read_size),
    ] = None
    """Size of the images the network sees in pixels: a side, or height x width, as 32x128."""
    ignore: int = 255
    """Mask value that is not a class."""
    device: Annotated[str, Flag(metavar="DEVICE")] = "auto"
    """Where to compute: auto, cpu, cuda, cuda:INDEX or mps."""
    layout: Annotated[str | None, Flag(metavar="NAME", default="recognised")] = None
    """Layout of the checkpoints; `dse-monitor layouts` lists them."""
    encoder: Annotated[str | None, Flag(metavar="NAME", default="the layout's")] = None
    """Which network of the file, where there are several (student, teacher, ...)."""
    arch: Annotated[str | None, Flag(metavar="MODEL", default="read from tensor shapes")] = None
    """timm model to build."""
    num_heads: Annotated[int | None, Flag(default="recognised")] = None
    """Attention heads, where shapes leave them open."""
    seed: Annotated[int, ADVANCED] = 0
    """Seed of the sample and of the splits."""
    splits: Annotated[int, ADVANCED] = 3
    """How many times the images are split in halves, one to fit and one to score."""
    neighbours: Annotated[int, ADVANCED] = 20
    """Tokens that vote in the nearest-neighbour probe."""
    precision: Annotated[Literal["float32", "bfloat16", "float16"], ADVANCED] = "float32"
    """Arithmetic of the forward pass."""
    micro_batch: Annotated[int | None, Flag(advanced=True, default="chosen by the device")] = None
    """Images per forward pass."""
    bands: Annotated[
        tuple[int, ...] | None, Flag(metavar="B,B,...", advanced=True, default="all", read=read_bands)
    ] = None
    """Which bands of a file are the network's channels, in their order and counted from 1: 4,3,2."""
    scale: Annotated[float | None, Flag(advanced=True, default="the range of the files' type")] = None
    """What the files' values are divided by; 10000 for reflectance in steps of 0.0001."""

    def __post_init__(self) -> None:
        for name, change in (("image_size", pair), ("bands", tuple)):
            if (value := getattr(self, name)) is not None:  # of the watcher's JSON
                object.__setattr__(self, name, change(value))
