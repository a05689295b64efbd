"""Image files -> uint8 pixels, in threads. No torch.

How an image becomes pixels (part of the fingerprint; a change here changes numbers):

- EXIF orientation is applied, as a viewer does. Plain `Image.open` loaders ignore it; a camera's sideways
  photograph would then be measured sideways.
- One frame: the first of an animation or a multi-page file.
- Greyscale, palette, CMYK and YCbCr become RGB. Transparency is blended over mid-grey. 16-bit and float
  greyscale is scaled to 8 bits: by its type's range when the values fit one ([0, 1], [0, 255], [0, 65535]),
  else by their own.
- The shorter side is resized to `resize` (bicubic, antialiased) and the centre square of `size` is kept, with
  torchvision's rounding. Large JPEG files are decoded at a reduced scale, never below twice `resize`.

Shapes: S = size.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dse_monitor.errors import ImagesError, one_line
from dse_monitor.evaluation.config import MINIMUM_SIDE

RECIPE = "exif, first frame, rgb over grey 128, bicubic shorter side, centre crop; 1"
MAXIMUM_PIXELS = 89_478_485  # per image as decoded; where Pillow begins to warn of decompression bombs
_GREY = (128, 128, 128)
_LONGEST = 4  # sides' ratio up to which the whole picture is resized
# These only recognise a file, or hand it to another program (Ghostscript), to Windows or to a plugin nobody
# registered.
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def readable_suffixes() -> frozenset[str]:
    """Suffixes, in lower case and with the dot, of the formats this Pillow decodes by itself."""
    Image.init()
    return frozenset(s for s, name in Image.registered_extensions().items() if name in _formats())


def read_image(path: Path, size: int, resize: int) -> NDArray[np.uint8]:
    """One file as RGB [S, S, 3], as the module's head says.

    Raises:
        ImagesError: cannot be decoded, is too small, or is too large; the text is the reason alone.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            width, height = image.size
            if min(width, height) < MINIMUM_SIDE:
                raise ImagesError(f"{width} x {height} px, the shorter side must have {MINIMUM_SIDE}")
            scale = 2 * resize / min(width, height)
            image.draft(
                None, (math.ceil(width * scale), math.ceil(height * scale))
            )  # acts on JPEG files only
            if image.width * image.height > MAXIMUM_PIXELS:
                raise ImagesError(f"{width} x {height} px, at most {MAXIMUM_PIXELS:,} pixels are decoded")
            image.load()
            picture = _to_rgb(_upright(image))
    except ImagesError:
        raise
    except Exception as error:  # decoders raise whatever they meet: OSError, SyntaxError, struct.error, ...
        detail = one_line(str(error).replace(repr(str(path)), "the file"))[:200]  # the caller names it
        raise ImagesError(f"cannot be decoded ({type(error).__name__}: {detail})") from error
    return np.asarray(centre_square(picture, size, resize, Image.Resampling.BICUBIC))


def centre_square(picture: Image.Image, size: int, resize: int, resampling: Image.Resampling) -> Image.Image:
    """The shorter side resized, the centre square kept: bit for bit torchvision's Resize, then CenterCrop.

    What the crop throws away of a picture longer than 4 : 1 is cut off before resizing (which moves the
    centre by less than a pixel), so that a long strip does not become a huge picture in between.
    """
    width, height = picture.size
    short = min(width, height)
    if max(width, height) > _LONGEST * short:
        left, top = (max(side - _LONGEST * short, 0) // 2 for side in (width, height))
        picture = picture.crop((left, top, width - left, height - top))
        width, height = picture.size
    wide, high = (resize if side == short else int(resize * side / short) for side in (width, height))
    left, top = round((wide - size) / 2.0), round((high - size) / 2.0)
    return picture.resize((wide, high), resampling).crop((left, top, left + size, top + size))


def decode(
    folder: Path, names: Iterable[str], size: int, resize: int, workers: int | None = None
) -> Iterator[tuple[str, NDArray[np.uint8] | ImagesError]]:
    """Decode files of a folder in threads: pairs of name and pixels [S, S, 3], in the order given.

    A file that cannot be used comes with its error in place of pixels. By default one thread per core
    works, at most 16; two images per thread are in memory. Python's warning filters are silenced meanwhile.
    """
    workers = workers or min(os.cpu_count() or 1, 16)

    def attempt(name: str) -> NDArray[np.uint8] | ImagesError:
        try:
            return read_image(folder / name, size, resize)
        except ImagesError as error:
            return error

    remaining = iter(names)
    pending: deque[tuple[str, Future[NDArray[np.uint8] | ImagesError]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    with warnings.catch_warnings():  # around the threads, because filters belong to the whole process
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata in files that decode well
        try:
            for name in islice(remaining, 2 * workers):
                pending.append((name, pool.submit(attempt, name)))
            while pending:
                name, future = pending.popleft()
                yield name, future.result()
                for following in islice(remaining, 1):
                    pending.append((following, pool.submit(attempt, following)))
        finally:
            pool.shutdown(cancel_futures=True)


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NO_PICTURES)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF data says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
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
