"""How a picture is brought to the size a network sees. No torch.

Shapes: H, W of the file; h, w of what the network sees; C bands.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dse_monitor.preprocessing import Preprocessing

_LONGEST = 4  # sides' ratio, relative to the one wanted, up to which the whole picture is resized


def fit(picture: Image.Image, how: Preprocessing, resampling: Image.Resampling | None = None) -> Image.Image:
    """A picture at `image_size`, resized and cropped as `how` says.

    A centre crop is, for squares, bit for bit torchvision's Resize, then CenterCrop; for others timm's
    ResizeKeepRatio, then CenterCrop. Of a picture more than four times as long as the crop only the part that
    is kept is resized, from the same places, so that a long strip does not become a huge picture in between.

    Args:
        picture: of any mode that Pillow resizes.
        how: sizes, crop mode and filter.
        resampling: another filter, for masks.
    """
    if resampling is None:
        resampling = Image.Resampling[how.interpolation.upper()]
    height, width = how.image_size
    high, wide = how.covered
    if how.crop_mode != "squash":
        wide, high = _covering(picture.size, how.covered)
    whole = math.floor if how.crop_mode == "center_floor" else round
    left, top = whole((wide - width) / 2.0), whole((high - height) / 2.0)
    if wide > _LONGEST * how.covered[1] or high > _LONGEST * how.covered[0]:
        across, down = picture.width / wide, picture.height / high  # px of the file for one of the result
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return picture.resize((width, height), resampling, box=box)
    return picture.resize((wide, high), resampling).crop((left, top, left + width, top + height))


def fit_bands(values: NDArray[Any], how: Preprocessing) -> NDArray[Any]:
    """Bands [H, W, C] at `image_size`, each by itself: uint8 stays uint8, everything else becomes float32.

    Integers stay within their type's range, as 8-bit pictures do, where a filter would overshoot.
    """
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


def _covering(size: tuple[int, int], covered: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture of (width, height) once it just covers (height, width)."""
    width, height = size
    high, wide = covered
    whole = int if high == wide else round  # as torchvision and as timm
    if high * width >= wide * height:  # the height decides
        return max(wide, whole(high * width / height)), high
    return wide, max(high, whole(wide * height / width))
