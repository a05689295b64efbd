"""Which files Pillow may decode here, and how it decodes them. No torch."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dse_monitor.errors import ImagesError, one_line

MAXIMUM_PIXELS = 89_478_485  # per image as decoded; where Pillow begins to warn of decompression bombs
_ORIENTATION, _TURNED = 0x0112, 5  # EXIF's tag; from this value on rows are columns
_GREY = (128, 128, 128)
# These only recognise a file, or hand it to another program (Ghostscript), to Windows or to a plugin nobody
# registered.
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow decodes by itself."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NO_PICTURES)


def suffixes() -> frozenset[str]:
    """Suffixes of `formats`, in lower case and with the dot."""
    Image.init()
    return frozenset(s for s, name in Image.registered_extensions().items() if name in formats())


def looked_at(path: Path) -> tuple[int, int]:
    """Width and height of a picture as a viewer turns it.

    Raises:
        ImagesError: it cannot be opened; the text is the reason alone.
    """
    try:
        with Image.open(path, formats=formats()) as picture:
            turned = picture.getexif().get(_ORIENTATION, 1) >= _TURNED
            return picture.size[::-1] if turned else picture.size
    except Exception as error:  # decoders raise whatever they meet
        raise ImagesError(f"cannot be opened ({type(error).__name__}: {one_line(error)})") from error


def upright(image: Image.Image) -> Image.Image:
    """The picture as a viewer turns it."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF data says nothing about the pixels
        return image


def is_deep(mode: str) -> bool:
    """Whether a mode is greyscale of more than 8 bits."""
    return mode.startswith(("I", "F"))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB; transparency is blended over mid-grey."""
    if is_deep(image.mode):
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (*_GREY, 255)), picture).convert("RGB")
    return image.convert("RGB")


def _to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Greyscale of more than 8 bits [H, W] as uint8, by the smallest usual range that holds the values."""
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImagesError("holds NaN or infinite pixels")
    if values.dtype.kind == "u":
        top = 65535.0
    else:
        usual = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
        top = next((bound for bound in usual if low >= 0 and high <= bound), None)
    if top is None:
        low, top = low, max(high - low, 1.0)
    else:
        low = 0.0
    return ((values.astype(np.float64) - low) * (255.0 / top) + 0.5).astype(np.uint8)
