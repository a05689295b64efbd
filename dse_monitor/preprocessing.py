"""What happens to an image before a network sees it, as its maker does it. No torch, nothing else of ours.

Shapes: C channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")  # as Pillow calls them
CROP_MODES = ("center", "center_floor", "squash")

_CROP_SHARE = 256 / 224  # resized for cropped side: what torchvision's and the authors' recipes take


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes what a network sees.

    Attributes:
        channels: C, colours or bands.
        image_size: height and width of what the network sees, px.
        resize: height and width that the picture is made to cover before its centre is cut out, px; with
            None 256/224 of `image_size`, and `image_size` itself with "squash".
        crop_mode: "center": the picture keeps its ratio, and its centre is cut out, half a pixel rounded to
            the even one as torchvision does; "center_floor": rounded down, as transformers does; "squash": it
            is resized to `resize` whatever its ratio, and nothing is cut off where that is `image_size`.
        interpolation: Pillow's name of the filter that resizes.
        mean: one per channel, subtracted from values scaled to [0, 1].
        std: one per channel, by which they are divided then.

    Raises:
        ValueError: a field has no meaning; names it, what it holds and what is expected.
    """

    channels: int = 3
    image_size: tuple[int, int] = (224, 224)
    resize: tuple[int, int] | None = None
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not _is_count(self.channels):
            raise ValueError(f"channels is {self.channels!r}, expected a whole number from 1")
        _check_pair("image_size", self.image_size)
        if self.resize is not None:
            _check_pair("resize", self.resize)
        _check_word("crop_mode", self.crop_mode, CROP_MODES)
        _check_word("interpolation", self.interpolation, INTERPOLATIONS)
        for name in ("mean", "std"):
            self._check_numbers(name, getattr(self, name))
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}, expected numbers above 0, since values are divided by them")
        if any(inner > outer for inner, outer in zip(self.image_size, self.covered, strict=True)):
            raise ValueError(
                f"resize is {self.resize}, expected at least the image_size {self.image_size} "
                "(height, width), which is cut out of it"
            )

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width that the picture is made to cover, px."""
        if self.resize is not None:
            return self.resize
        return self.image_size if self.crop_mode == "squash" else default_resize(self.image_size)

    def at(self, image_size: tuple[int, int] | None) -> Preprocessing:
        """The same for another size, with as large a share cut off; itself for None or its own size."""
        if image_size is None or image_size == self.image_size:
            return self
        resize = None
        if self.resize is not None:
            sides = zip(image_size, self.resize, self.image_size, strict=True)
            resize = tuple(max(new, round(new * outer / inner)) for new, outer, inner in sides)
        return replace(self, image_size=image_size, resize=resize)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return {name: _listed(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in data.items()}
        return cls(**values)

    def _check_numbers(self, name: str, values: Sequence[float]) -> None:
        whole = isinstance(values, tuple) and all(_is_number(value) for value in values)
        if not whole or len(values) != self.channels:
            raise ValueError(
                f"{name} is {values!r}, expected {self.channels} finite number{'s' * (self.channels != 1)}, "
                "one for each channel"
            )


def default_resize(image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width before a centre crop to `image_size`, px: 256 for 224, as in torchvision's recipes."""
    height, width = image_size
    return round(height * _CROP_SHARE), round(width * _CROP_SHARE)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size that may be given as the side of a square."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def side(size: tuple[int, int]) -> int | tuple[int, int]:
    """The side of a square; height and width of anything else: how records and JSON keep a size."""
    return size[0] if size[0] == size[1] else size


def read_size(text: str) -> tuple[int, int]:
    """Height and width of "224" or "32x128".

    Raises:
        ValueError: it is neither.
    """
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise ValueError(
            f"{text!r} is no size, expected a side in pixels, as 224, or height x width, as 32x128"
        )
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_pair(name: str, value: object) -> None:
    if not (isinstance(value, tuple) and len(value) == 2 and all(_is_count(side) for side in value)):
        raise ValueError(f"{name} is {value!r}, expected (height, width) in whole pixels from 1")


def _check_word(name: str, value: object, words: tuple[str, ...]) -> None:
    if value not in words:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(words)}")
