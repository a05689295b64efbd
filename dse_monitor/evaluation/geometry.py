"""How a picture is brought to the size a network sees. No torch.

Shapes: H, W of the file; h, w of what the network sees; C bands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dse_monitor.preprocessing import Preprocessing

_LONGEST = 4  # sides' ratio, relative to the one wanted, up to which the whole picture is resized


def fit(picture: Image.Image, how: Preprocessing, resampling: Image.Resampling | None = None) -> Image.Image:
    """A picture at `image_size`, resized and cropped as `how` says.

    A centre crop is, for squares, bit for bit torchvision's Resize, then CenterCrop. What it throws away of a
    picture more than four times as long as the crop is cut off before resizing (which moves the centre by
    less than a pixel), so that a long strip does not become a huge picture in between.

    Args:
        picture: of any mode that Pillow resizes.
        how: sizes, crop mode and filter.
        resampling: another filter, for masks.
    """
    if resampling is None:
        resampling = Image.Resampling[how.interpolation.upper()]
    height, width = how.image_size
    if how.crop_mode == "squash":
        high, wide = how.covered
    else:
        box = _middle(picture.size, how)
        if box != (0, 0, *picture.size):
            picture = picture.crop(box)
        wide, high = _covering(picture.size, how.covered)
    left, top = round((wide - width) / 2.0), round((high - height) / 2.0)
    return picture.resize((wide, high), resampling).crop((left, top, left + width, top + height))


def fit_bands(values: NDArray[Any], how: Preprocessing) -> NDArray[Any]:
    """Bands [H, W, C] at `image_size`, each by itself: uint8 stays uint8, everything else becomes float32.

    Integers stay within their type's range, as 8-bit pictures do, where a filter would overshoot.
    """
    if how.crop_mode == "center":
        height, width, _ = values.shape
        left, top, right, bottom = _middle((width, height), how)
        values = values[top:bottom, left:right]
    if values.dtype == np.uint8 and values.shape[2] == 3:
        return np.asarray(fit(Image.fromarray(np.ascontiguousarray(values)), how))
    kind = np.dtype(np.uint8 if values.dtype == np.uint8 else np.float32)
    out = np.empty((*how.image_size, values.shape[2]), kind)
    for band in range(values.shape[2]):
        plane = np.ascontiguousarray(values[..., band], kind)
        out[..., band] = np.asarray(fit(Image.fromarray(plane), how))
    if values.dtype.kind in "iu" and kind == np.float32:
        bounds = np.iinfo(values.dtype)
        np.clip(out, bounds.min, bounds.max, out=out)
    return out


def _middle(size: tuple[int, int], how: Preprocessing) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is resized of a picture of (width, height)."""
    width, height = size
    high, wide = how.covered
    longest = (_LONGEST * height * wide // high, _LONGEST * width * high // wide)
    left, top = (max(own - most, 0) // 2 for own, most in zip(size, longest, strict=True))
    return left, top, width - left, height - top


def _covering(size: tuple[int, int], covered: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture of (width, height) once it just covers (height, width)."""
    width, height = size
    high, wide = covered
    if high * width >= wide * height:  # the height decides
        return max(wide, int(high * width / height)), high
    return wide, max(high, int(wide * height / width))
