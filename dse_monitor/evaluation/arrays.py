"""Files that hold bands rather than a picture: NumPy arrays and TIFF of any depth. No torch.

Who reads what: `.npy` and `.npz` are read by NumPy, without pickles, and `.npy` is mapped. TIFF is read by
tifffile where that is installed, else, or where tifffile has no codec for it, by rasterio, else by Pillow,
which knows few kinds; every other file by Pillow. Nothing is allocated before the shape that a file states
was compared with `MAXIMUM_PIXELS` and, where that is possible, with the file's own size.

Shapes: H, W pixels; C bands. Bands are counted from 1 in messages and from 0 in code.
"""

from __future__ import annotations

import importlib
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dse_monitor.errors import ImagesError, one_line
from dse_monitor.evaluation import pillow
from dse_monitor.evaluation.config import MINIMUM_SIDE
from dse_monitor.evaluation.pillow import MAXIMUM_PIXELS

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
MAXIMUM_VALUES = 4 * MAXIMUM_PIXELS  # per file, all bands together: those of the largest RGBA picture
FIRST, LAST = 0, -1  # the axis of the bands
_MOST_NAMED = 5  # arrays of an .npz named in a message
_ORIENTATION, _PHOTOMETRICS = 274, ("MINISBLACK", "RGB")  # TIFF's tag; colours that are bands as they are

Bands = Sequence[int] | None  # which to read, from 0; None: all


@dataclass(frozen=True)
class Opened:
    """What a file's header says, and how to read the rest.

    Attributes:
        shape: [H, W], [H, W, C] or [C, H, W].
        dtype: of its values.
        axis: where its bands are, `FIRST` or `LAST`; None if the file does not say.
        load: reads bands as [H, W, C] once the axis is known.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int | None
    load: Callable[[int, Bands], NDArray[Any]]


def open_bands(path: Path) -> Opened:
    """The header of a file of bands.

    Raises:
        ImagesError: it cannot be read, or what it states cannot be used; the text is the reason alone.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            opened = _open_npy(path)
        elif suffix == ".npz":
            opened = _open_npz(path)
        elif suffix in TIFF_SUFFIXES:
            opened = _open_tiff(path)
        else:
            opened = _open_pillow(path)
        _check(opened.shape, opened.dtype, opened.axis)
        return opened
    except ImagesError:
        raise
    except Exception as error:  # readers raise whatever they meet
        raise ImagesError(_undecodable(path, error)) from error


def read_bands(path: Path, axis: int, count: int, dtype: str, bands: Bands = None) -> NDArray[Any]:
    """Bands [H, W, C] of a file that is like the first of its folder.

    Args:
        path: the file.
        axis: where the bands are in files that do not say.
        count: how many bands it must hold.
        dtype: NumPy's name of the type its values must have.
        bands: which of them are read, in this order, from 0; all with None.

    Raises:
        ImagesError: it cannot be read, or differs; the text is the reason alone.
    """
    opened = open_bands(path)
    where = axis if opened.axis is None else opened.axis
    own = band_count(opened.shape, where)
    if (own, opened.dtype.name) != (count, dtype):
        raise ImagesError(
            f"{_counted(own)} of {opened.dtype.name} in {_shape(opened.shape)}, expected "
            f"{_counted(count)} of {dtype} as in the folder's first file"
        )
    try:
        return opened.load(where, bands)
    except ImagesError:
        raise
    except Exception as error:
        raise ImagesError(_undecodable(path, error)) from error


def band_count(shape: tuple[int, ...], axis: int) -> int:
    """Bands of an array whose bands are at an axis; one for [H, W]."""
    return 1 if len(shape) == 2 else shape[axis]


def band_axis(shape: tuple[int, ...]) -> int:
    """Where an array's bands are: the first or the last axis, if it is shorter than both others.

    Raises:
        ImagesError: the shape leaves it open; the text is the reason alone.
    """
    if len(shape) == 2:
        return LAST
    first, middle, last = shape
    if last < min(first, middle):
        return LAST
    if first < min(middle, last):
        return FIRST
    raise ImagesError(
        f"an array {_shape(shape)} leaves open which axis holds the bands, expected [H, W], or [H, W, C] or "
        "[C, H, W] with fewer bands than pixels along each side; save it as TIFF, or as one file per band"
    )


def _check(shape: tuple[int, ...], dtype: np.dtype[Any], axis: int | None) -> None:
    """Refuse what cannot be an image, or is too large or too small for one."""
    if dtype.hasobject:
        raise ImagesError("holds Python objects, which are not loaded; save an array of numbers")
    if dtype.kind not in "buif":
        raise ImagesError(f"holds values of type {dtype}, expected whole or floating-point numbers")
    if len(shape) not in (2, 3):
        raise ImagesError(f"an array {_shape(shape)}, expected [H, W], [H, W, C] or [C, H, W]")
    if min(shape) < 1:
        raise ImagesError(f"an array {_shape(shape)} holds no pixels")
    sides = shape[1:] if len(shape) == 3 and axis == FIRST else shape[:2]
    if len(shape) == 3 and axis is None:
        sides = sorted(shape)[1:]  # bands are along the shortest
    if min(sides) < MINIMUM_SIDE:
        raise ImagesError(f"an array {_shape(shape)}, the shorter side must have {MINIMUM_SIDE} px")
    if math.prod(sides) > MAXIMUM_PIXELS or math.prod(shape) > MAXIMUM_VALUES:
        raise ImagesError(
            f"an array {_shape(shape)}, at most {MAXIMUM_PIXELS:,} pixels and {MAXIMUM_VALUES:,} values "
            "are read"
        )


def _select(values: NDArray[Any], axis: int, bands: Bands) -> NDArray[Any]:
    """Bands [H, W, C] of an array as it lies in a file; a view where that is possible."""
    if values.ndim == 2:
        values = values[..., None]
    elif axis == FIRST:
        values = np.moveaxis(values, 0, -1)
    return values if bands is None else values[..., list(bands)]


def _open_npy(path: Path) -> Opened:
    with open(path, "rb") as file:
        shape, fortran, dtype = _npy_header(file)
        offset = file.tell()
        held = os.fstat(file.fileno()).st_size - offset
    _check(shape, dtype, None)  # before anything is computed with what may be no number
    if held < (promised := math.prod(shape) * dtype.itemsize):
        raise ImagesError(_cut_off(shape, dtype, promised, held))

    def load(axis: int, bands: Bands) -> NDArray[Any]:
        order = "F" if fortran else "C"
        return _select(np.memmap(path, dtype, "r", offset, shape, order), axis, bands)

    return Opened(shape, dtype, None, load)


def _open_npz(path: Path) -> Opened:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) != 1:
            held = ", ".join(name.removesuffix(".npy") for name in names[:_MOST_NAMED])
            more = ", ..." if len(names) > _MOST_NAMED else ""
            raise ImagesError(f"holds {len(names)} arrays ({held}{more}), expected one; save each by itself")
        with archive.open(names[0]) as file:
            shape, fortran, dtype = _npy_header(file)

    def load(axis: int, bands: Bands) -> NDArray[Any]:
        with zipfile.ZipFile(path) as archive, archive.open(names[0]) as file:
            _npy_header(file)
            content = file.read(promised := math.prod(shape) * dtype.itemsize)
        if len(content) < promised:
            raise ImagesError(_cut_off(shape, dtype, promised, len(content)))
        values = np.frombuffer(content, dtype)
        return _select(values.reshape(shape, order="F" if fortran else "C"), axis, bands)

    return Opened(shape, dtype, None, load)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type; the file stands at the first value then."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ImagesError(f"is of version {version[0]}.{version[1]} of .npy, which holds records, not an array")


def _open_tiff(path: Path) -> Opened:
    """TIFF by the first of the readers that are installed and know this file."""
    failures = []
    for name, opener in (("tifffile", _open_tifffile), ("rasterio", _open_rasterio)):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        try:
            return opener(path)
        except ImagesError:  # the file was understood, and refused
            raise
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {one_line(error)[:200]}")
    try:
        return _open_pillow(path)
    except ImagesError:
        raise
    except Exception as error:
        if failures:
            raise ImagesError(f"cannot be decoded ({'; '.join(failures)})") from error
        raise ImagesError(
            f"{_undecodable(path, error)}; pip install tifffile, which reads more TIFF"
        ) from error


def _open_tifffile(path: Path) -> Opened:
    tifffile = importlib.import_module("tifffile")
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = series.keyframe
        if getattr(page.photometric, "name", "") not in _PHOTOMETRICS:
            return _open_pillow(path)
        shape, dtype = tuple(map(int, series.shape)), np.dtype(series.dtype)
        axis = _tiff_axis(str(series.axes), shape)
        turn = int(page.tags.valueof(_ORIENTATION, 1))
        nodata = float(page.nodata) if page.tags.get("GDAL_NODATA") else None

    def load(axis: int, bands: Bands) -> NDArray[Any]:
        try:
            with tifffile.TiffFile(path) as file:
                values = file.series[0].asarray(maxworkers=1)
        except Exception:  # no codec for this compression, mostly
            try:
                importlib.import_module("rasterio")
                return _open_rasterio(path).load(FIRST, bands)
            except Exception:  # what tifffile says is more to the point
                pass
            raise
        return _without_gaps(_upright(_select(values, axis, bands), turn), nodata)

    return Opened(shape, dtype, axis, load)


def _tiff_axis(axes: str, shape: tuple[int, ...]) -> int:
    """Where the bands of a TIFF are, by tifffile's letters of its axes.

    S are samples of a pixel, C channels, Q and I pages of which nothing is said: bands, if anything. T is
    time and Z depth: several images.
    """
    if axes == "YX" or (axes[1:] == "YX" and axes[0] in "SCQI"):
        return FIRST
    if axes[:2] == "YX" and axes[2:] in ("S", "C"):
        return LAST
    raise ImagesError(
        f"holds {_shape(shape)} along the axes {axes} (T: time, Z: depth), expected one image, of rows Y, "
        "columns X and perhaps bands; save each image as a file of its own"
    )


def _open_rasterio(path: Path) -> Opened:
    rasterio = importlib.import_module("rasterio")

    def opened() -> Any:
        # No other driver: some follow addresses written in the file. No files beside it either.
        return rasterio.open(path, driver="GTiff")

    environment = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
    with rasterio.Env(**environment), opened() as file:
        if file.subdatasets:
            raise ImagesError(f"holds {len(file.subdatasets)} pages; pip install tifffile, which reads them")
        if len(set(file.dtypes)) > 1:
            raise ImagesError(f"bands of several types ({', '.join(sorted(set(file.dtypes)))}), expected one")
        shape, dtype = (file.count, file.height, file.width), np.dtype(file.dtypes[0])
        nodata = file.nodata
        _check(shape, dtype, FIRST)

    def load(axis: int, bands: Bands) -> NDArray[Any]:
        with rasterio.Env(**environment), opened() as file:
            values = file.read(None if bands is None else [band + 1 for band in bands])
        return _without_gaps(_select(values, axis, None), nodata)

    return Opened(shape, dtype, FIRST, load)


def _open_pillow(path: Path) -> Opened:
    with Image.open(path, formats=pillow.formats()) as image:
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise ImagesError("holds several pages; pip install tifffile, which reads them")
        width, height = image.size
        if image.getexif().get(_ORIENTATION, 1) >= 5:
            width, height = height, width
        bands, dtype = len(image.getbands()), _PILLOW_TYPES.get(image.mode, np.dtype(np.uint8))
        if image.mode == "I" and image.format == "PNG":  # how Pillow before 11.3 opens 16 bits
            dtype = np.dtype(np.uint16)
        if image.mode in ("P", "PA"):
            bands = 3

    def load(axis: int, bands: Bands) -> NDArray[Any]:
        with Image.open(path, formats=pillow.formats()) as image:
            image.load()
            picture = pillow.upright(image)
            if picture.mode in ("P", "PA"):
                picture = picture.convert("RGB")
            values = np.asarray(picture).astype(dtype, copy=False)
        return _select(values, axis, bands)

    return Opened((height, width) if bands == 1 else (height, width, bands), dtype, LAST, load)


_PILLOW_TYPES = {
    "1": np.dtype(np.bool_),
    "I;16": np.dtype(np.uint16),
    "I;16L": np.dtype(np.uint16),
    "I;16B": np.dtype(">u2"),
    "I;16N": np.dtype(np.uint16),
    "I": np.dtype(np.int32),
    "F": np.dtype(np.float32),
}


def _without_gaps(values: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    """Floating-point bands, refused if a pixel is marked as without data; in integers the mark is a value."""
    if nodata is not None and values.dtype.kind == "f" and bool((values == values.dtype.type(nodata)).any()):
        raise ImagesError(f"holds pixels without data (marked {nodata:g})")
    return values


def _upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Bands [H, W, C] as TIFF's orientation says they are to be looked at."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _undecodable(path: Path, error: Exception) -> str:
    detail = one_line(str(error).replace(repr(str(path)), "the file").replace(str(path), "the file"))[:200]
    return f"cannot be decoded ({type(error).__name__}: {detail})"


def _cut_off(shape: tuple[int, ...], dtype: np.dtype[Any], promised: int, held: int) -> str:
    return f"is cut off: {_shape(shape)} of {dtype} takes {promised:,} bytes, it holds {held:,}"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _counted(bands: int) -> str:
    return f"{bands} band{'s' * (bands != 1)}"
