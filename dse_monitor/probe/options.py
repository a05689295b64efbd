"""Which labelled images a probe uses, and how; no torch, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labelled images and how they are used."""

    images: Path
    """Folder of images."""
    masks: Path
    """Folder of masks under the same names (any suffix): one channel, the pixel's value is its class."""
    num_images: int = 1000
    """Pairs used, a seeded sample."""
    seed: int = 0
    """Seed of the sample and of the splits."""
    splits: int = 3
    """How many times the images are split in halves, one to fit and one to score."""
    neighbours: int = 20
    """Tokens that vote in the nearest-neighbour probe."""
    ignore: int = 255
    """Mask value that is no class."""
    image_size: int | None = None
    """Side of the centre crop in pixels; the network's own if not given."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:INDEX or mps."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the forward pass."""
    micro_batch: int | None = None
    """Images per forward pass; the device's default if not given."""
    layout: str | None = None
    """Checkpoint layout, if it is not recognised; `dse-monitor layouts` lists them."""
    encoder: str | None = None
    """Which network of the file, where there are several (student, teacher, ...)."""
    arch: str | None = None
    """timm model to use instead of the one read from tensor shapes."""
    num_heads: int | None = None
    """Attention heads, where shapes leave them open."""
