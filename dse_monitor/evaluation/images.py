"""Held-out images: a folder -> one fixed, seeded sample -> a uint8 pixel cache with a fingerprint. No torch.

How an image becomes pixels (part of the fingerprint; a change here changes numbers):

- EXIF orientation is applied, as a viewer does. Plain `Image.open` loaders ignore it; a camera's sideways
  photograph would then be measured sideways.
- One frame: the first of an animation or a multi-page file.
- Greyscale, palette, CMYK and YCbCr become RGB. Transparency is blended over mid-grey. 16-bit and float
  greyscale is scaled to 8 bits: by its type's range when the values fit one ([0, 1], [0, 255], [0, 65535]),
  else by their own.
- The shorter side is resized to `resize` (bicubic, antialiased) and the centre square of `size` is kept, with
  torchvision's rounding. Large JPEG files are decoded at a reduced scale, never below twice `resize`.

Shapes: n images, S = size.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dse_monitor import atomic
from dse_monitor.errors import ImagesError, OutputError
from dse_monitor.evaluation.config import MINIMUM_IMAGES, MINIMUM_SIDE

Progress = Callable[[int, int], None]  # (done, total)

MAXIMUM_PIXELS = 89_478_485  # per image as decoded; where Pillow begins to warn of decompression bombs
STALE_SECONDS = 3600.0  # s; a half-written cache file this old belongs to a process that was killed

_RECIPE = "exif, first frame, rgb over grey 128, bicubic shorter side, centre crop; 1"
_GREY = (128, 128, 128)
_LONGEST = 4  # sides' ratio up to which the whole picture is resized
# These only recognise a file, or hand it to another program (Ghostscript), to Windows or to a plugin nobody
# registered.
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@dataclass(frozen=True)
class Skipped:
    """A file that looked like an image and could not be used."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The sample, decoded.

    Attributes:
        pixels: uint8 [n, S, S, 3], RGB, mapped from the cache file: touching a part reads that part, and
            writing to it changes this process's copy alone.
        names: paths relative to the folder with forward slashes, in the order of `pixels`.
        fingerprint: sixteen hexadecimal digits, equal exactly when pixels, their order and the recipe are.
        found: image files in the folder when the sample was drawn.
        skipped: files passed over when the sample was drawn, each replaced by the next of the seeded order.
        resize: shorter side before cropping, px.
        asked: images asked for; more than n when the folder held fewer.
        notes: what a user should know, one sentence each; empty when all went as asked.
    """

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    fingerprint: str
    found: int
    skipped: tuple[Skipped, ...]
    resize: int
    asked: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """Side of the square images, px."""
        return self.pixels.shape[1]


@dataclass(frozen=True)
class _Sample:
    """Which files were drawn, as kept in the cache folder for the life of a run."""

    names: tuple[str, ...]
    found: int
    skipped: tuple[Skipped, ...]


def prepare(
    folder: Path | str,
    *,
    num_images: int = 2048,
    seed: int = 0,
    size: int = 224,
    resize: int | None = None,
    cache: Path | str,
    progress: Progress | None = None,
    workers: int | None = None,
) -> ImageSet:
    """Draw, decode and cache a sample of the images under a folder; the same call gives the same sample.

    The order is that of a hash of (seed, relative name), so it depends neither on the file system nor on
    the other files. The sample is written to the cache folder: images added to the folder afterwards do not
    change it. Files that cannot be used are replaced by the next in order, once, when the sample is drawn.
    While the pixel cache is whole the folder is not touched, and may even be gone. Python's warning filters
    are silenced while images decode.

    Args:
        folder: searched recursively; links are followed, hidden files and folders are not read.
        num_images: how many to use; with fewer in the folder all are used and a note says so.
        seed: of the order.
        size: side of the centre crop, px.
        resize: shorter side before cropping, px; by default `size` * 256 / 224.
        cache: folder for the sample list and the pixels, created when missing.
        progress: called with (images decoded, images wanted) while the cache is built.
        workers: decoding threads; by default one per core, at most 16.

    Raises:
        ImagesError: no such folder, fewer than `MINIMUM_IMAGES` usable images, or an image of an earlier
            sample is gone.
        OutputError: the cache cannot be written.
        ValueError: num_images < `MINIMUM_IMAGES`, size < 1 or resize < size.
    """
    resize = default_resize(size) if resize is None else resize
    if num_images < MINIMUM_IMAGES:
        raise ValueError(f"num_images must be at least {MINIMUM_IMAGES}, got {num_images}")
    if size < 1 or resize < size:
        raise ValueError(
            f"the crop must be at least 1 px and fit the resized image, got {size} of {resize} px"
        )
    folder, cache = Path(folder).expanduser().resolve(), Path(cache).expanduser()
    key = hashlib.sha256(f"{folder}\0{num_images}\0{seed}".encode()).hexdigest()[:12]
    sample_file = cache / f"sample-{key}.json"
    pixel_file = cache / f"pixels-{key}-{resize}-{size}.rgb"

    sample = _read_sample(sample_file)
    fingerprint = _check_pixels(pixel_file, sample, size, resize) if sample else ""
    if sample is None or not fingerprint:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _remove_stale_parts(cache)
            if sample is None:
                sample = _draw(folder, num_images, seed, size, resize, pixel_file, progress, workers)
                _write_json(sample_file, asdict(sample))
            else:
                _decode_again(folder, sample, size, resize, pixel_file, progress, workers)
        except OSError as error:
            raise OutputError(
                f"{cache}: the image cache cannot be written ({error}); free space or rights?"
            ) from error
        fingerprint = _check_pixels(pixel_file, sample, size, resize)
        if not fingerprint:
            raise OutputError(f"{pixel_file}: what was written reads back differently; check the disk")
    return ImageSet(
        pixels=np.memmap(pixel_file, np.uint8, "c", shape=(len(sample.names), size, size, 3)),
        names=sample.names,
        fingerprint=fingerprint,
        found=sample.found,
        skipped=sample.skipped,
        resize=resize,
        asked=num_images,
        notes=tuple(_notes(folder, sample, num_images)),
    )


def default_resize(size: int) -> int:
    """Shorter side before a centre crop of `size` px: 256 for 224 as in the authors' recipe."""
    return round(size * 256 / 224)


def find(folder: Path) -> list[str]:
    """All files under a folder whose suffix Pillow can read: relative paths with forward slashes, sorted.

    Links to folders are followed and each folder is entered once. Left out: what begins with a dot, and
    folders below that may not be listed (a disk's `lost+found`).

    Raises:
        ImagesError: the folder does not exist or cannot be listed.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ImagesError(
            f"{folder}: expected a folder of images, found {found}; check the path of the images"
        )
    suffixes, names, seen = readable_suffixes(), [], set()
    pending = [("", folder)]
    while pending:
        prefix, here = pending.pop()
        try:
            status = here.stat()
            with os.scandir(here) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            if prefix:
                continue
            raise ImagesError(f"{here}: cannot be listed ({error}); give a folder you may read") from error
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        below = []
        for entry in entries:
            if _is(entry, "dir"):
                below.append((f"{prefix}{entry.name}/", Path(entry.path)))
            elif os.path.splitext(entry.name)[1].lower() in suffixes and _is(entry, "file"):
                names.append(prefix + entry.name)
        pending += reversed(below)  # a stack: the first folder by name is entered next
    return sorted(names)


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    """Whether an entry leads to a folder ("dir") or a plain file ("file"); a link to itself does neither."""
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:
        return False


def seeded_order(names: Iterable[str], seed: int) -> list[str]:
    """Names in the order of a hash of (seed, name): random, whatever the other names are."""

    def rank(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogateescape"), digest_size=16).digest()

    return sorted(names, key=rank)


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
        raise ImagesError(f"cannot be decoded ({type(error).__name__}: {_one_line(error, path)})") from error
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


# --- pixels of one file -------------------------------------------------------------------------------------


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


def _one_line(error: Exception, path: Path) -> str:
    """The text of an error without the path, which the caller names itself."""
    return " ".join(str(error).replace(repr(str(path)), "the file").split())[:200]


# --- the sample ---------------------------------------------------------------------------------------------


def _draw(
    folder: Path,
    num: int,
    seed: int,
    size: int,
    resize: int,
    target: Path,
    progress: Progress | None,
    workers: int | None,
) -> _Sample:
    """Draw the sample and write its pixels."""
    found = find(folder)
    names, skipped = [], []

    def rows() -> Iterator[NDArray[np.uint8]]:
        wanted = min(num, len(found))
        for name, result in decode(folder, seeded_order(found, seed), size, resize, workers):
            if isinstance(result, ImagesError):
                skipped.append(Skipped(name, str(result)))
                continue
            names.append(name)
            yield result
            if progress:
                progress(len(names), wanted)
            if len(names) == num:
                return
        if len(names) < MINIMUM_IMAGES:
            usable = f"{len(names)} usable images among {len(found)} image files"
            why = f" (unusable: {skipped[0].name}: {skipped[0].reason})" if skipped else ""
            raise ImagesError(
                f"{folder}: {usable}, at least {MINIMUM_IMAGES} are needed{why}; give more images"
            )

    _write_pixels(target, rows(), size, resize)
    return _Sample(tuple(names), len(found), tuple(skipped))


def _decode_again(
    folder: Path,
    sample: _Sample,
    size: int,
    resize: int,
    target: Path,
    progress: Progress | None,
    workers: int | None,
) -> None:
    """Write the pixels of an earlier sample; nothing is replaced, another sample would not be comparable."""

    def rows() -> Iterator[NDArray[np.uint8]]:
        for done, (name, result) in enumerate(decode(folder, sample.names, size, resize, workers), 1):
            if isinstance(result, ImagesError):
                raise ImagesError(
                    f"{folder / name}: belongs to this run's fixed sample and {result}; bring it back, or "
                    f"delete {target.parent} to draw another sample (its numbers will not be comparable)"
                )
            yield result
            if progress:
                progress(done, len(sample.names))

    _write_pixels(target, rows(), size, resize)


def _notes(folder: Path, sample: _Sample, asked: int) -> Iterator[str]:
    if len(sample.names) < asked:
        yield f"{folder}: {len(sample.names):,} usable images, {asked:,} asked for: all of them are measured"
    if sample.skipped:
        first = sample.skipped[0]
        yield f"{len(sample.skipped):,} unusable image files passed over, first {first.name}: {first.reason}"


# --- files of the cache -------------------------------------------------------------------------------------


def _fingerprint(size: int, resize: int) -> Any:
    """A running hash; feed it the pixels in order."""
    return hashlib.sha256(f"{_RECIPE}; {resize}; {size}; ".encode())


def _write_pixels(target: Path, rows: Iterator[NDArray[np.uint8]], size: int, resize: int) -> None:
    """Write images one after another with their fingerprint beside them; both appear whole or not at all."""
    running, count = _fingerprint(size, resize), 0
    with atomic.replacing(target) as part, open(part, "wb") as file:
        for row in rows:
            data = row.tobytes()
            running.update(data)
            file.write(data)
            count += 1
    _write_json(target.with_suffix(".json"), {"images": count, "sha256": running.hexdigest()})


def _check_pixels(file: Path, sample: _Sample, size: int, resize: int) -> str:
    """The fingerprint of a pixel file that is whole and unchanged, else an empty string."""
    try:
        expected = json.loads(file.with_suffix(".json").read_bytes())
        length = len(sample.names) * size * size * 3
        if expected["images"] != len(sample.names) or file.stat().st_size != length:
            return ""
        running = _fingerprint(size, resize)
        with open(file, "rb") as stream:
            while block := stream.read(1 << 24):
                running.update(block)
        return running.hexdigest()[:16] if running.hexdigest() == expected["sha256"] else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _read_sample(file: Path) -> _Sample | None:
    try:
        data = json.loads(file.read_bytes())
        skipped = tuple(Skipped(item["name"], item["reason"]) for item in data["skipped"])
        return _Sample(tuple(str(name) for name in data["names"]), int(data["found"]), skipped)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_json(target: Path, data: dict[str, Any]) -> None:
    atomic.write_bytes(target, json.dumps(data, indent=1).encode())


def _remove_stale_parts(cache: Path) -> None:
    for part in cache.glob(f"*{atomic.PART}"):
        if time.time() - part.stat().st_mtime > STALE_SECONDS:
            part.unlink(missing_ok=True)
