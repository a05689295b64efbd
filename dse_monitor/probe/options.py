"""What `dse-monitor probe` is asked: which labelled images, and how they are used. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.evaluation.config import read_bands
from dse_monitor.flags import ADVANCED, Flag


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Labelled images."""

    images: Annotated[Path, Flag(name="labelled", metavar="DIR", aliases=("--images",))]
    """Folder of labelled images."""
    masks: Annotated[Path, Flag(metavar="DIR")]
    """Folder of masks under the same names (any suffix): one channel, the pixel's value is its class."""
    num_images: int = 1000
    """Pairs used: a seeded sample."""
    bands: Annotated[
        tuple[int, ...] | None, Flag(metavar="B,B,...", advanced=True, default="all", read=read_bands)
    ] = None
    """Which bands of a file are the network's channels, in their order and counted from 1: 4,3,2."""
    scale: Annotated[float | None, Flag(advanced=True, default="the range of the files' type")] = None
    """What the files' values are divided by; 10000 for reflectance in steps of 0.0001."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ReadingOptions, LabelledImages):
    """Labelled images, how they are used, and how a checkpoint is recognised."""

    ignore: int = 255
    """Mask value that is not a class."""
    device: Annotated[str, Flag(metavar="DEVICE")] = "auto"
    """Where to compute: auto, cpu, cuda, cuda:INDEX or mps."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bands is not None:  # of the watcher's JSON
            object.__setattr__(self, "bands", tuple(self.bands))
