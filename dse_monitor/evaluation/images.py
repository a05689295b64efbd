"""Held-out images: a folder -> one fixed, seeded sample -> a uint8 pixel cache with a fingerprint. No torch.

Shapes: n images, S = size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dse_monitor.errors import ImagesError, OutputError
from dse_monitor.evaluation import image_cache
from dse_monitor.evaluation.config import MINIMUM_IMAGES
from dse_monitor.evaluation.decoding import decode, readable_suffixes
from dse_monitor.evaluation.image_cache import Sample, Skipped

Progress = Callable[[int, int], None]  # (done, total)


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

    sample = image_cache.read_sample(sample_file)
    fingerprint = image_cache.check_pixels(pixel_file, sample, size, resize) if sample else ""
    if sample is None or not fingerprint:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            image_cache.remove_stale_parts(cache)
            if sample is None:
                sample = _draw(folder, num_images, seed, size, resize, pixel_file, progress, workers)
                image_cache.write_sample(sample_file, sample)
            else:
                _decode_again(folder, sample, size, resize, pixel_file, progress, workers)
        except OSError as error:
            raise OutputError(
                f"{cache}: the image cache cannot be written ({error}); free space or rights?"
            ) from error
        fingerprint = image_cache.check_pixels(pixel_file, sample, size, resize)
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


def _draw(
    folder: Path,
    num: int,
    seed: int,
    size: int,
    resize: int,
    target: Path,
    progress: Progress | None,
    workers: int | None,
) -> Sample:
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

    image_cache.write_pixels(target, rows(), size, resize)
    return Sample(tuple(names), len(found), tuple(skipped))


def _decode_again(
    folder: Path,
    sample: Sample,
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

    image_cache.write_pixels(target, rows(), size, resize)


def _notes(folder: Path, sample: Sample, asked: int) -> Iterator[str]:
    if len(sample.names) < asked:
        yield f"{folder}: {len(sample.names):,} usable images, {asked:,} asked for: all of them are measured"
    if sample.skipped:
        first = sample.skipped[0]
        yield f"{len(sample.skipped):,} unusable image files passed over, first {first.name}: {first.reason}"
