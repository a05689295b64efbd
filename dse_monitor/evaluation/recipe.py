"""How the files of a folder become what a network sees: which kind, which bands, in what unit. No torch.

There are three ways. A *picture* (anything Pillow shows, for a network of three channels or one) becomes
8-bit RGB or grey. Files of *bands* keep their values: bands are chosen, resized one by one and brought to the
unit that `mean` and `std` are given in. With a *transform* of the user's own nothing else is done.

The first usable file decides which kind a folder is, and what its bands are; one that differs is passed over.

Shapes: H, W of the file; h, w of what the network sees; C channels.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dse_monitor.errors import ImagesError, one_line
from dse_monitor.evaluation import arrays, decoding, pillow
from dse_monitor.evaluation.geometry import fit_bands
from dse_monitor.preprocessing import Preprocessing, side

PICTURE, BANDS, TRANSFORMED = "picture", "bands", "transformed"
_LOOKED_AT = 64  # files opened until one can be used; ours
_TIFF_LOOKED_AT = 16  # among them, those of which one that Pillow reads makes a folder of TIFF pictures; ours
_BANDS_VERSION = "bands; 1"  # of the fingerprint; raised when their pixels change
_UNIT = {"uint8": 255.0, "uint16": 65535.0, "bool": 1.0}  # what integers are divided by

Transform = Callable[[Path], Any]


@dataclass(frozen=True)
class Files:
    """What the files of a folder are.

    Attributes:
        kind: `PICTURE`, `BANDS` or `TRANSFORMED`.
        bands: how many there are.
        axis: where they are in arrays that do not say: `arrays.FIRST` or `arrays.LAST`.
        dtype: NumPy's name of their values' type.
        shape: [C, H, W] of what a transform gives.
    """

    kind: str = PICTURE
    bands: int = 3
    axis: int = arrays.LAST
    dtype: str = "uint8"
    shape: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Files:
        """The inverse of `to_json`."""
        return cls(**{**data, "shape": tuple(data["shape"])})


PICTURES = Files()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to each file.

    Attributes:
        preprocessing: what the network's maker does; `mean` and `std` are left to the encoder.
        bands: which bands of a file are the network's channels, in order, counted from 1; empty for all.
        scale: what values are divided by, instead of their type's range.
        transform: called as transform(path), gives [C, H, W]; nothing else is done then.
        transform_id: what tells this transform from others.

    Raises:
        ValueError: bands below 1 or of another number than the channels, a scale that is not above 0, or a
            transform without an identity or with bands or scale.
    """

    preprocessing: Preprocessing
    bands: tuple[int, ...] = ()
    scale: float | None = None
    transform: Transform | None = None
    transform_id: str = ""

    def __post_init__(self) -> None:
        channels = self.preprocessing.channels
        if self.bands and min(self.bands) < 1:
            raise ValueError(f"bands are counted from 1, got {_commas(self.bands)}")
        if self.bands and len(self.bands) != channels:
            raise ImagesError(
                f"{len(self.bands)} bands were chosen ({_commas(self.bands)}), the network has {channels} "
                "channels; give --bands one number for each channel"
            )
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be a number above 0, got {self.scale}")
        if (self.transform is None) != (not self.transform_id):
            raise ValueError("a transform and its transform_id must be given together")
        if self.transform is not None and (self.bands or self.scale is not None):
            raise ValueError("bands and scale are not used with a transform of your own; leave them out")

    @property
    def plain(self) -> bool:
        """Whether pictures are read as a viewer shows them; else every file is a file of bands."""
        return not self.bands and self.scale is None and self.preprocessing.channels in (1, 3)

    @property
    def choice(self) -> tuple[str, ...]:
        """What, besides the folder, decides which files are usable; empty for pictures in RGB."""
        if self.transform is not None:
            return (self.transform_id,)
        if self.plain and self.preprocessing.channels == 3:
            return ()
        return (str(self.preprocessing.channels), _commas(self.bands), f"{self.scale}")

    def look(self, folder: Path, names: Sequence[str]) -> Files:
        """What the files of a folder are, as the first usable one of `names` says.

        Raises:
            ImagesError: none of those looked at can be used, or the network cannot take them.
        """
        if self.transform is not None:
            return self._first(folder, names, self._transformed)
        if self.plain and (found := self._pictures(folder, names)):
            return found
        found = self._first(folder, names, _bands)
        self._check(folder, found)
        return found

    def read(self, path: Path, files: Files) -> NDArray[Any]:
        """Pixels [h, w, C] of one file of the folder that `files` describes.

        Raises:
            ImagesError: it cannot be used; the text is the reason alone.
        """
        if files.kind == PICTURE:
            return decoding.read_picture(path, self.preprocessing)
        if files.kind == TRANSFORMED:
            found, values = self._call(path)
            if found.shape != files.shape:
                raise ImagesError(
                    f"the transform gave {list(found.shape)}, expected {list(files.shape)} as of the "
                    "folder's first file"
                )
            return values.transpose(1, 2, 0)
        chosen = [band - 1 for band in self.bands] or None
        values = arrays.read_bands(path, files.axis, files.bands, files.dtype, chosen)
        if values.dtype.kind == "b":
            values = values.astype(np.float32)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ImagesError("holds NaN or infinite pixels")
        fitted = fit_bands(values, self.preprocessing)
        if values.dtype.itemsize > 4 and not np.isfinite(fitted).all():
            raise ImagesError("holds pixels beyond the range of float32; scale them before saving")
        if fitted.dtype == np.float32 and (unit := self._unit(files)) != 1:
            fitted /= np.float32(unit)
        elif fitted.dtype == np.uint8 and self.scale is not None:
            fitted = fitted.astype(np.float32) / np.float32(self.scale)
        if fitted.shape[2] < self.preprocessing.channels:
            fitted = np.repeat(fitted, self.preprocessing.channels, axis=2)
        return fitted

    def shape(self, files: Files) -> tuple[int, int, int]:
        """h, w and C of what `read` gives."""
        if files.kind == TRANSFORMED:
            channels, height, width = files.shape
            return height, width, channels
        return (*self.preprocessing.image_size, self.preprocessing.channels)

    def pixel_size(self, path: Path, files: Files) -> tuple[int, int]:
        """Width and height of a file as it is looked at, before it is resized.

        Raises:
            ImagesError: it cannot be opened; the text is the reason alone.
        """
        if files.kind == BANDS:
            with _quiet():
                opened = arrays.open_bands(path)
            axis = files.axis if opened.axis is None else opened.axis
            height, width = (
                opened.shape[1:] if len(opened.shape) == 3 and axis == arrays.FIRST else opened.shape[:2]
            )
            return width, height
        return pillow.looked_at(path)

    def dtype(self, files: Files) -> np.dtype[Any]:
        """Of what `read` gives: 8 bits where the files have no more, else float32."""
        eight = files.kind == PICTURE or (files.kind == BANDS and files.dtype == "uint8" and not self.scale)
        return np.dtype(np.uint8 if eight else np.float32)

    def scaling(self, files: Files) -> str:
        """How values came to their unit, in words; empty for 8 bits by 255."""
        if files.kind == TRANSFORMED:
            return "by the transform"
        if self.dtype(files) == np.uint8:
            return ""
        if files.kind == BANDS and files.dtype.startswith("float") and self.scale is None:
            return f"{files.dtype} as it is"
        return f"{files.dtype} / {self._unit(files):g}"

    def words(self, files: Files) -> str:
        """What the fingerprint covers besides the pixels."""
        how = self.preprocessing
        if files.kind == TRANSFORMED:
            return f"transform {self.transform_id}; {files.shape}; "
        if files.kind == PICTURE and self._usual:
            # As it was before there were other recipes, so that numbers of older runs can be compared.
            return f"{decoding.RECIPE}; {_plain(how.covered)}; {_plain(how.image_size)}; "
        if files.kind == PICTURE:
            what = [decoding.RECIPE]
        else:
            what = [_BANDS_VERSION, self.scaling(files), _counted(files.bands), _commas(self.bands)]
        sizes = (f"{how.covered}", f"{how.image_size}", f"{how.channels} channels")
        return "; ".join([*what, how.crop_mode, how.interpolation, *sizes, ""])

    def file_name(self, key: str, files: Files) -> str:
        """Name of the file of pixels in the cache."""
        how = self.preprocessing
        if files.kind == PICTURE and self._usual:
            return f"pixels-{key}-{_plain(how.covered)}-{_plain(how.image_size)}.rgb"
        suffix = "u8" if self.dtype(files) == np.uint8 else "f32"
        height, width, channels = self.shape(files)
        digest = hashlib.sha256(self.words(files).encode()).hexdigest()[:8]
        return f"pixels-{key}-{height}x{width}x{channels}-{digest}.{suffix}"

    def notes(self, files: Files) -> list[str]:
        """What a user should know of how files are read, one sentence each."""
        channels = self.preprocessing.channels
        if files.kind == PICTURE:
            grey = "pictures are converted to greyscale (luma), since the network has one channel"
            return [grey] if channels == 1 else []
        if files.kind == TRANSFORMED:
            return [f"images are what the transform makes of them, {list(files.shape)}, and nothing else"]
        which = f"bands {_commas(self.bands)} of {files.bands}" if self.bands else _counted(files.bands)
        where = "[C, H, W]" if files.axis == arrays.FIRST else "[H, W, C]"
        laid_out = f" in arrays {where}" if files.bands > 1 else ""
        repeated = f", repeated for the network's {channels} channels" if self._repeats(files) else ""
        unit = self.scaling(files) or "uint8 / 255"
        return [f"files of {files.dtype}{laid_out}: {which}{repeated}, {unit}"]

    @property
    def _usual(self) -> bool:
        how = self.preprocessing
        return how.channels == 3 and how.crop_mode == "center" and how.interpolation == "bicubic"

    def _repeats(self, files: Files) -> bool:
        return files.bands == 1 and self.preprocessing.channels == 3 and not self.bands

    def _unit(self, files: Files) -> float:
        """What values are divided by."""
        return self.scale or _UNIT.get(files.dtype, 1.0)

    def _pictures(self, folder: Path, names: Sequence[str]) -> Files | None:
        """`PICTURES` if that is what the folder holds."""
        if self.preprocessing.channels == 3:
            if any(_suffix(name) not in arrays.TIFF_SUFFIXES | arrays.ARRAY_SUFFIXES for name in names):
                return PICTURES
            tiff = [name for name in names if _suffix(name) in arrays.TIFF_SUFFIXES]
            if any(_mode(folder / name) for name in tiff[:_TIFF_LOOKED_AT]):
                return PICTURES
            return None
        modes = (_mode(folder / name) for name in names[:_LOOKED_AT])
        first = next((mode for mode in modes if mode), "")
        return PICTURES if first and not pillow.is_deep(first) else None

    def _first(self, folder: Path, names: Sequence[str], look: Callable[[Path], Files]) -> Files:
        """What the first usable file is."""
        reason = ""
        for name in islice(names, _LOOKED_AT):
            try:
                with _quiet():
                    return look(folder / name)
            except ImagesError as error:
                reason = reason or f"{name}: {error}"
        looked = min(len(names), _LOOKED_AT)
        raise ImagesError(
            f"{folder}: none of the {looked} files looked at can be used, first {reason or 'none'}; "
            "mend them, or give another folder of images"
        )

    def _check(self, folder: Path, files: Files) -> None:
        """Refuse files that the network, or these options, cannot be given.

        Raises:
            ImagesError: says channels, bands and what to do.
        """
        channels, held = self.preprocessing.channels, _counted(files.bands)
        if self.bands and max(self.bands) > files.bands:
            raise ImagesError(
                f"{folder}: band {max(self.bands)} was chosen with --bands, the files hold {held}, counted "
                "from 1"
            )
        if not self.bands and files.bands != channels and not self._repeats(files):
            raise ImagesError(
                f"{folder}: the network takes {channels} channel{'s' * (channels != 1)}, the files hold "
                f"{held}; say which band is which channel with --bands (counted from 1, one for each "
                "channel), or give images of the network's own bands"
            )
        if files.dtype not in _UNIT and not files.dtype.startswith("float") and self.scale is None:
            raise ImagesError(
                f"{folder}: the files hold {files.dtype}, of which no usual range is known; give --scale, "
                "the value that becomes 1"
            )

    def _transformed(self, path: Path) -> Files:
        found, _ = self._call(path)
        if found.bands != self.preprocessing.channels:
            raise ImagesError(
                f"the transform gave {list(found.shape)}, expected [C, H, W] with the network's "
                f"{self.preprocessing.channels} channels"
            )
        return found

    def _call(self, path: Path) -> tuple[Files, NDArray[np.float32]]:
        """What the transform makes of a file [C, H, W].

        Raises:
            ImagesError: it fails, or what it gives is no image; the text is the reason alone.
        """
        assert self.transform is not None
        try:
            given = self.transform(path)
            given = given.detach().cpu().numpy() if hasattr(given, "detach") else np.asarray(given)
        except Exception as error:  # the user's own code
            raise ImagesError(f"{type(error).__name__}: {one_line(error)[:200]} ({_where(error)})") from error
        if given.ndim != 3 or given.dtype.kind != "f" or 0 in given.shape:
            raise ImagesError(
                f"the transform gave {given.dtype} {list(given.shape)}, expected floating-point [C, H, W]"
            )
        values = given.astype(np.float32)
        if not np.isfinite(values).all():
            raise ImagesError("the transform gave NaN or infinite values")
        return Files(TRANSFORMED, given.shape[0], arrays.FIRST, "float32", given.shape), values


def _bands(path: Path) -> Files:
    """What a file of bands is."""
    opened = arrays.open_bands(path)
    axis = arrays.band_axis(opened.shape) if opened.axis is None else opened.axis
    return Files(BANDS, arrays.band_count(opened.shape, axis), axis, opened.dtype.name)


def _mode(path: Path) -> str:
    """Pillow's mode of a picture; empty if it is none."""
    if _suffix(path.name) in arrays.ARRAY_SUFFIXES:
        return ""
    try:
        with _quiet(), Image.open(path, formats=pillow.formats()) as image:
            return image.mode
    except Exception:  # decoders raise whatever they meet
        return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of decoders, which concern files that are read well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _where(error: Exception) -> str:
    """File and line that raised an error, of the user's own code as far as that can be told."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    last = (own or frames or traceback.extract_tb(error.__traceback__))[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _plain(size: tuple[int, int]) -> str:
    """A size in a name: the side of a square, else height x width."""
    own = side(size)
    return str(own) if isinstance(own, int) else f"{own[0]}x{own[1]}"


def _commas(bands: Iterable[int]) -> str:
    return ",".join(map(str, bands))


def _counted(bands: int) -> str:
    return f"{bands} band{'s' * (bands != 1)}"
