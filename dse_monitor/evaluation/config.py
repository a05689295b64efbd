"""What is measured, on what, and where: plain values, made once at the border. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.flags import ADVANCED, Flag
from dse_monitor.preprocessing import side

MINIMUM_IMAGES = 8  # one group of the metric's clustering; fewer say nothing about a network
MINIMUM_SIDE = 16  # px, shorter side; below it an image holds no detail to resize
MOST_SEED = 2**63 - 1 - 2**20  # of torch, less room for the batches, which count on from it
_LEAST = {
    "num_images": MINIMUM_IMAGES,
    "image_size": MINIMUM_SIDE,
    "seed": 0,
    "batch": 1,
    "group": 1,
    "local_clusters": 1,
    "global_clusters": 2,
    "micro_batch": 1,
    "num_heads": 1,
    "bands": 1,
    "preview_bands": 1,
}
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_NO_NUMBER = ("micro_batch", "preview_bands")  # fields that change no number


def read_bands(text: str) -> tuple[int, ...]:
    """The numbers of "4,3,2".

    Raises:
        ValueError: it is no such list.
    """
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"{text!r} are no bands, expected their numbers with commas, as 4,3,2")
    return tuple(map(int, text.split(",")))


@dataclass(frozen=True, kw_only=True)
class HeldOutImages:
    """Which images are measured."""

    images: Annotated[Path, Flag(metavar="DIR")]
    """Folder of held-out images, searched recursively; no labels are used."""
    num_images: int = 2048
    """Images measured: a seeded sample that stays the same for the life of a run."""
    bands: Annotated[
        tuple[int, ...] | None, Flag(metavar="B,B,...", advanced=True, default="all", read=read_bands)
    ] = None
    """Which bands of a file are the network's channels, in their order and counted from 1: 4,3,2."""
    scale: Annotated[float | None, Flag(advanced=True, default="the range of the files' type")] = None
    """What the files' values are divided by; 10000 for reflectance in steps of 0.0001."""
    preview_bands: Annotated[
        tuple[int, ...] | None,
        Flag(metavar="R,G,B", advanced=True, default="principal components", read=read_bands),
    ] = None
    """Channels shown as red, green and blue beside the feature maps, where there are more than three."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(ReadingOptions, HeldOutImages):
    """What is measured, on what, and how a checkpoint is recognised.

    Raises:
        ValueError: a number out of range, or an unknown precision.
    """

    seed: Annotated[int, ADVANCED] = 0
    """Seed of the sample, of the clustering and of the permutation of positions."""
    batch: Annotated[int, ADVANCED] = 1024
    """Images per metric batch; part of the definition of m_dim."""
    group: Annotated[int, ADVANCED] = 8
    """Consecutive images clustered together."""
    local_clusters: Annotated[int, ADVANCED] = 3
    """Clusters per image."""
    global_clusters: Annotated[int, ADVANCED] = 24
    """Clusters per group."""
    normalize: Annotated[bool, ADVANCED] = True
    """L2-normalise tokens first."""
    precision: Annotated[Literal["auto", "float32", "bfloat16", "float16"], ADVANCED] = "auto"
    """Arithmetic of the forward pass; auto is bfloat16 on CUDA and float32 elsewhere."""
    micro_batch: Annotated[int | None, Flag(advanced=True, default="chosen by the device")] = None
    """Images per forward pass; halved by itself when memory runs out. Does not change the numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "images", Path(self.images).expanduser().absolute())
        for name in ("bands", "preview_bands"):
            if (value := getattr(self, name)) is not None:  # JSON knows lists alone
                object.__setattr__(self, name, tuple(value))
        for name, bound in _LEAST.items():
            value = getattr(self, name)
            if value is not None and (min(value) if isinstance(value, tuple) else value) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}")
        if self.preview_bands is not None and len(self.preview_bands) != 3:
            raise ValueError(f"preview_bands must be three numbers, got {len(self.preview_bands)}")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be a number above 0, got {self.scale}")
        if self.seed > MOST_SEED:
            raise ValueError(f"seed must be at most {MOST_SEED}, got {self.seed}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    @property
    def request(self) -> str:
        """Twelve hexadecimal digits, equal exactly when checkpoints are to be measured in the same way."""
        asked = {
            name: value
            for name, value in self.to_json().items()
            if name not in _NO_NUMBER and value not in (None, (), []) and (name, value) != ("layer", "last")
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types; a square image size is its side."""
        values = {**dataclasses.asdict(self), "images": str(self.images)}
        if self.image_size is not None:
            values["image_size"] = side(self.image_size)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EvaluationConfig:
        """The inverse of `to_json`."""
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where checkpoints are evaluated, and where what they leave behind goes.

    Attributes:
        cache: folder for the image sample and its pixels; give each run its own.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:INDEX`` or ``mps``.
        maps: output folder of the run, whose `media/` gets the feature maps; None paints none.

    Raises:
        ValueError: an unknown device.
    """

    cache: str
    device: str = "auto"
    maps: str | None = None

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"device must be auto, cpu, cuda, cuda:INDEX or mps, got {self.device!r}")

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Placement:
        """The inverse of `to_json`."""
        return cls(**data)
