"""Pictures -> uint8 pixels, and many files in threads. No torch.

How a picture becomes pixels (part of the fingerprint; a change here changes numbers):

- EXIF orientation is applied, as a viewer does. Plain `Image.open` loaders ignore it; a camera's sideways
  photograph would then be measured sideways.
- One frame: the first of an animation or a multi-page file.
- Greyscale, palette, CMYK and YCbCr become RGB. Transparency is blended over mid-grey. 16-bit and float
  greyscale is scaled to 8 bits: by its type's range when the values fit one ([0, 1], [0, 255], [0, 65535]),
  else by their own. A network of one channel gets the luma of that RGB (ITU-R 601-2).
- Resized and cropped as `geometry.fit` says: unless the network's maker says otherwise, the shorter side is
  resized (bicubic, antialiased) and the centre is kept, with torchvision's rounding. Large JPEG files are
  decoded at a reduced scale, never below twice the size wanted.

Shapes: h, w of what the network sees.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dse_monitor.errors import ImagesError, one_line
from dse_monitor.evaluation import pillow
from dse_monitor.evaluation.config import MINIMUM_SIDE
from dse_monitor.evaluation.geometry import fit
from dse_monitor.preprocessing import Preprocessing

RECIPE = "exif, first frame, rgb over grey 128, bicubic shorter side, centre crop; 1"


def read_picture(path: Path, how: Preprocessing) -> NDArray[np.uint8]:
    """One file as uint8 [h, w, 3], or [h, w, 1] for a network of one channel, as the module's head says.

    Raises:
        ImagesError: cannot be decoded, is too small, or is too large; the text is the reason alone.
    """
    try:
        with Image.open(path, formats=pillow.formats()) as image:
            width, height = image.size
            if min(width, height) < MINIMUM_SIDE:
                raise ImagesError(f"{width} x {height} px, the shorter side must have {MINIMUM_SIDE}")
            scale = 2 * max(how.covered) / min(width, height)  # enough in either orientation
            image.draft(
                None, (math.ceil(width * scale), math.ceil(height * scale))
            )  # acts on JPEG files only
            if image.width * image.height > pillow.MAXIMUM_PIXELS:
                raise ImagesError(
                    f"{width} x {height} px, at most {pillow.MAXIMUM_PIXELS:,} pixels are decoded"
                )
            image.load()
            picture = pillow.to_rgb(pillow.upright(image))
    except ImagesError:
        raise
    except Exception as error:  # decoders raise whatever they meet: OSError, SyntaxError, struct.error, ...
        detail = one_line(str(error).replace(repr(str(path)), "the file"))[:200]  # the caller names it
        raise ImagesError(f"cannot be decoded ({type(error).__name__}: {detail})") from error
    if how.channels == 1:
        return np.asarray(fit(picture.convert("L"), how))[..., None]
    return np.asarray(fit(picture, how))


def decode(
    folder: Path,
    names: Iterable[str],
    read: Callable[[Path], NDArray[Any]],
    workers: int | None = None,
) -> Iterator[tuple[str, NDArray[Any] | ImagesError]]:
    """Read files of a folder in threads: pairs of name and pixels [h, w, C], in the order given.

    A file that cannot be used comes with its error in place of pixels. By default one thread per core
    works, at most 16; two images per thread are in memory. Python's warning filters are silenced meanwhile.

    Args:
        folder: where the files are.
        names: relative to it.
        read: makes pixels of one file, or raises ImagesError.
        workers: threads.
    """
    workers = workers or min(os.cpu_count() or 1, 16)

    def attempt(name: str) -> NDArray[Any] | ImagesError:
        try:
            return read(folder / name)
        except ImagesError as error:
            return error

    remaining = iter(names)
    pending: deque[tuple[str, Future[NDArray[Any] | ImagesError]]] = deque()
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
