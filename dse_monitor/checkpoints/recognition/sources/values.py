"""Values that somebody else wrote down, checked and brought to one form; what has no meaning becomes None."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# Bounds that no network or image goes beyond; ours. They keep absurd values out, no more.
MAX_CHANNELS = 1024
MAX_SIDE = 1 << 16  # pixels
MAX_HEADS = 1024
MAX_WORD = 100  # characters
MAX_STATISTIC = 1e6  # of a channel: larger than any of 16-bit images

# Pillow's filters by its own numbers, and their names in Pillow, torchvision, timm, OpenCV and open_clip.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_FILTER_NAMES = {**{name: name for name in _FILTERS}, "linear": "bilinear", "cubic": "bicubic"}

# Activations by their names in transformers, timm, torch and mmcv; unknown ones keep theirs.
_ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_erf": "gelu",
    "gelu_new": "gelu_tanh", "gelu_tanh": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelutanh": "gelu_tanh",
    "quick_gelu": "quick_gelu", "quickgelu": "quick_gelu",
    "relu": "relu", "silu": "silu", "swish": "silu", "swiglu": "silu",
}  # fmt: skip


class Statement(NamedTuple):
    """One value, and where it stands.

    Attributes:
        name: as statements.py lists them.
        value: checked.
        source: the place, in words.
        standing: equal for places of which none counts more than another; empty where the order decides.
        read_before: earlier versions of this package read it there too.
    """

    name: str
    value: Any
    source: str
    standing: str = ""
    read_before: bool = False


def stated(
    name: str, value: Any, source: str, standing: str = "", *, read_before: bool = False
) -> Iterator[Statement]:
    """The statement, if its value has a meaning."""
    if value is not None:
        yield Statement(name, value, source, standing, read_before)


def number(value: Any) -> float | None:
    """A finite number, no boolean."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int) and not -(1 << 62) < value < 1 << 62:
        return None
    return float(value) if math.isfinite(value) else None


def count(value: Any, most: int = MAX_HEADS) -> int | None:
    """A whole number from 1."""
    found = number(value)
    return int(found) if found is not None and 1 <= found <= most and found.is_integer() else None


def epsilon(value: Any) -> float | None:
    """A norm's epsilon."""
    found = number(value)
    return found if found is not None and 0 < found < 1 else None


def share(value: Any) -> float | None:
    """The part of a picture that a crop keeps of each side."""
    found = number(value)
    return found if found is not None and 0.1 <= found <= 1 else None


def numbers(value: Any) -> tuple[float, ...] | None:
    """One number per channel."""
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_CHANNELS:
        return None
    found = [number(item) for item in value]
    if any(item is None or abs(item) > MAX_STATISTIC for item in found):
        return None
    return tuple(item for item in found if item is not None)


def statistics(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of values in [0, 1]; those of values up to 255 are divided by it."""
    first, second = numbers(mean), numbers(std)
    if first is None or second is None or len(first) != len(second) or min(second) <= 0:
        return None
    if max(second) > 1.5 or max(map(abs, first)) > 1.5:  # no value in [0, 1] has such a mean
        first, second = tuple(m / 255 for m in first), tuple(s / 255 for s in second)
    if max(map(abs, first)) > 1.5 or not 1e-6 < min(second):
        return None
    return first, second


def size(value: Any) -> tuple[int, int] | None:
    """Height and width: of a side, a pair, (channels, height, width), or a mapping that names them."""
    if isinstance(value, Mapping):
        value = (value.get("height"), value.get("width"))
    if isinstance(value, (list, tuple)):
        if not 1 <= len(value) <= 3:
            return None
        sides = [count(side, MAX_SIDE) for side in value[-2:]]
    else:
        sides = [count(value, MAX_SIDE)]
    height, width = sides[0], sides[-1]
    return None if height is None or width is None else (height, width)


def interpolation(value: Any) -> str | None:
    """A filter by Pillow's number or anybody's name for it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _FILTERS[value] if 0 <= value < len(_FILTERS) else None
    name = word(value)
    return None if name is None else _FILTER_NAMES.get(name.lower().removeprefix("interpolationmode."))


def activation(value: Any) -> str | None:
    """An activation by one name, whatever library named it; another's own name where we know none."""
    if not _is_word(value):
        return None
    name = value.rsplit(".", 1)[-1].lower()
    return _ACTIVATIONS.get(name, name) or None


def word(value: Any) -> str | None:
    """A short printable text."""
    return value if _is_word(value) else None


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_WORD and value.isprintable()
