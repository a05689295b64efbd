"""Held-out images: a folder -> one fixed, seeded sample -> a cache of pixels with a fingerprint. No torch.

Shapes: n images; h, w of what the network sees; C channels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dse_monitor.errors import ImagesError, OutputError
from dse_monitor.evaluation import image_cache, pillow
from dse_monitor.evaluation.arrays import ARRAY_SUFFIXES, TIFF_SUFFIXES
from dse_monitor.evaluation.config import MINIMUM_IMAGES
from dse_monitor.evaluation.decoding import decode
from dse_monitor.evaluation.image_cache import Sample, Skipped
from dse_monitor.evaluation.recipe import TRANSFORMED, Recipe, Transform
from dse_monitor.preprocessing import Preprocessing

Progress = Callable[[int, int], None]  # (done, total)
_UNIT_INTERVAL = ("", "uint16 / 65535")  # scalings after which all values are in [0, 1]
_LARGEST_STD = 1.0  # of values in [0, 1] it is at most 0.5, and 1 leaves them as they are


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The sample, decoded.

    Attributes:
        pixels: [n, h, w, C], mapped from the cache file: touching a part reads that part, and writing to it
            changes this process's copy alone. uint8 for pictures and 8-bit bands, else float32 in the unit of
            the network's mean and standard deviation.
        names: paths relative to the folder with forward slashes, in the order of `pixels`.
        fingerprint: sixteen hexadecimal digits, equal exactly when pixels, their order and the recipe are.
        found: image files in the folder when the sample was drawn.
        skipped: files passed over when the sample was drawn, each replaced by the next of the seeded order.
        preprocessing: what was done to each.
        bands: which bands of a file are the channels, counted from 1; empty for all in their order.
        scaling: how values came to their unit, in words; empty for 8 bits by 255.
        normalised: whether the pixels are what the network sees, as a transform of the user's own gives.
        asked: images asked for; more than n when the folder held fewer.
        notes: what a user should know, one sentence each; empty when all went as asked.
    """

    pixels: NDArray[Any]
    names: tuple[str, ...]
    fingerprint: str
    found: int
    skipped: tuple[Skipped, ...]
    preprocessing: Preprocessing
    asked: int
    bands: tuple[int, ...] = ()
    scaling: str = ""
    normalised: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, px."""
        return self.pixels.shape[1], self.pixels.shape[2]


def prepare(
    folder: Path | str,
    preprocessing: Preprocessing,
    *,
    num_images: int = 2048,
    seed: int = 0,
    cache: Path | str,
    bands: Iterable[int] | None = None,
    scale: float | None = None,
    transform: Transform | None = None,
    transform_id: str = "",
    progress: Progress | None = None,
    workers: int | None = None,
) -> ImageSet:
    """Draw, decode and cache a sample of the images under a folder; the same call gives the same sample.

    The order is that of a hash of (seed, relative name), so it depends neither on the file system nor on
    the other files. The sample is written to the cache folder: images added to the folder afterwards do not
    change it. Files that cannot be used are replaced by the next in order, once, when the sample is drawn.
    While the pixel cache is whole the folder is not touched, and may even be gone. Python's warning filters
    are silenced while images decode.

    Pictures become 8-bit RGB (or grey, for a network of one channel). Arrays (`.npy`, `.npz`) and TIFF that
    is no picture are files of bands, as is everything where bands or a scale are given, or where the network
    has other than 3 or 1 channels: integers are divided by their type's range (uint8 by 255, uint16 by
    65,535), floating-point values are taken as they are, and `scale` divides instead. See `recipe`.

    Args:
        folder: searched recursively; links are followed, hidden files and folders are not read.
        preprocessing: sizes and filter of the network's maker; `mean` and `std` are not applied here.
        num_images: how many to use; with fewer in the folder all are used and a note says so.
        seed: of the order.
        cache: folder for the sample list and the pixels, created when missing.
        bands: which bands of a file are the network's channels, in order, counted from 1; all if None.
        scale: what the values of a file are divided by: the value that becomes 1.
        transform: called as transform(path) in one thread; gives what the network sees, floating-point
            [C, h, w]. Nothing else is done then. If it has an attribute `suffixes`, files with those are
            offered to it, else all.
        transform_id: what tells it from other transforms, a digest of its code for instance.
        progress: called with (images decoded, images wanted) while the cache is built.
        workers: decoding threads; by default one per core, at most 16, and one for a transform.

    Raises:
        ImagesError: no such folder, fewer than `MINIMUM_IMAGES` usable images, an image of an earlier
            sample is gone, or the files' bands are not the network's channels.
        OutputError: the cache cannot be written.
        ValueError: num_images < `MINIMUM_IMAGES`, or bands, scale or transform have no meaning.
    """
    if num_images < MINIMUM_IMAGES:
        raise ValueError(f"num_images must be at least {MINIMUM_IMAGES}, got {num_images}")
    recipe = Recipe(
        preprocessing=preprocessing,
        bands=tuple(bands or ()),
        scale=scale,
        transform=transform,
        transform_id=transform_id,
    )
    folder, cache = Path(folder).expanduser().resolve(), Path(cache).expanduser()
    work = _Work(folder, cache, recipe, num_images, seed, progress, workers)
    sample, fingerprint = _cached(work)
    shape = (len(sample.names), *recipe.shape(sample.files))
    return ImageSet(
        pixels=np.memmap(work.pixel_file(sample), recipe.dtype(sample.files), "c", shape=shape),
        names=sample.names,
        fingerprint=fingerprint,
        found=sample.found,
        skipped=sample.skipped,
        preprocessing=preprocessing,
        asked=num_images,
        bands=recipe.bands,
        scaling=recipe.scaling(sample.files),
        normalised=sample.files.kind == TRANSFORMED,
        notes=tuple(_notes(work, sample)),
    )


@dataclass(frozen=True)
class _Work:
    """One call of `prepare`: what is read, how, and where it goes."""

    folder: Path
    cache: Path
    recipe: Recipe
    asked: int
    seed: int
    progress: Progress | None
    workers: int | None

    @property
    def key(self) -> str:
        parts = [str(self.folder), str(self.asked), str(self.seed), *self.recipe.choice]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]

    @property
    def sample_file(self) -> Path:
        return self.cache / f"sample-{self.key}.json"

    def pixel_file(self, sample: Sample) -> Path:
        return self.cache / self.recipe.file_name(self.key, sample.files)

    def check(self, sample: Sample) -> str:
        """The fingerprint of the sample's pixels, if they are there and whole."""
        height, width, channels = self.recipe.shape(sample.files)
        each = height * width * channels * self.recipe.dtype(sample.files).itemsize
        words = self.recipe.words(sample.files)
        return image_cache.check_pixels(self.pixel_file(sample), len(sample.names), each, words)

    def decoded(
        self, names: Iterable[str], sample: Sample
    ) -> Iterator[tuple[str, NDArray[Any] | ImagesError]]:
        workers = 1 if self.recipe.transform is not None and not self.workers else self.workers
        return decode(self.folder, names, lambda path: self.recipe.read(path, sample.files), workers)

    def write(self, sample: Sample, rows: Iterator[NDArray[Any]]) -> None:
        image_cache.write_pixels(self.pixel_file(sample), rows, self.recipe.words(sample.files))


def _cached(work: _Work) -> tuple[Sample, str]:
    """The sample and the fingerprint of its pixels, which lie in the cache then."""
    sample = image_cache.read_sample(work.sample_file)
    fingerprint = work.check(sample) if sample else ""
    if sample is not None and fingerprint:
        return sample, fingerprint
    try:
        work.cache.mkdir(parents=True, exist_ok=True)
        image_cache.remove_stale_parts(work.cache)
        if sample is None:
            sample = _draw(work)
            image_cache.write_sample(work.sample_file, sample)
        else:
            _decode_again(work, sample)
    except OSError as error:
        raise OutputError(
            f"{work.cache}: the image cache cannot be written ({error}); free space or rights?"
        ) from error
    fingerprint = work.check(sample)
    if not fingerprint:
        raise OutputError(
            f"{work.pixel_file(sample)}: what was written reads back differently; check the disk"
        )
    return sample, fingerprint


def offered(folder: Path, transform: Transform | None = None) -> tuple[list[str], int]:
    """The files under a folder that are tried, and how many arrays are left out.

    Arrays (`.npy`, `.npz`) are taken where there is no picture; beside pictures they are something else,
    features or masks for instance, and are left out. A transform is offered files with the suffixes that its
    attribute `suffixes` names, or all.

    Raises:
        ImagesError: the folder does not exist or cannot be listed.
    """
    if transform is not None:
        wanted = getattr(transform, "suffixes", None)
        return find(folder, None if wanted is None else frozenset(suffix.lower() for suffix in wanted)), 0
    names = find(folder, pillow.suffixes() | TIFF_SUFFIXES | ARRAY_SUFFIXES)
    arrays = [name for name in names if os.path.splitext(name)[1].lower() in ARRAY_SUFFIXES]
    if len(arrays) in (0, len(names)):
        return names, 0
    left = set(arrays)
    return [name for name in names if name not in left], len(arrays)


def find(folder: Path, suffixes: frozenset[str] | None) -> list[str]:
    """All files under a folder with certain suffixes: relative paths with forward slashes, sorted.

    Links to folders are followed and each folder is entered once. Left out: what begins with a dot, and
    folders below that may not be listed (a disk's `lost+found`).

    Args:
        folder: the folder.
        suffixes: in lower case, with the dot; None takes every file.

    Raises:
        ImagesError: the folder does not exist or cannot be listed.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ImagesError(
            f"{folder}: expected a folder of images, found {found}; check the path of the images"
        )
    names, seen = [], set()
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
            elif (suffixes is None or os.path.splitext(entry.name)[1].lower() in suffixes) and _is(
                entry, "file"
            ):
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


def _draw(work: _Work) -> Sample:
    """Draw the sample and write its pixels."""
    found, left_out = offered(work.folder, work.recipe.transform)
    order = seeded_order(found, work.seed)
    names, skipped = [], []
    if found:
        files = work.recipe.look(work.folder, order)
        blank = Sample((), len(found), (), files, left_out)
    else:
        blank = Sample((), 0, (), left_out=left_out)

    def rows() -> Iterator[NDArray[Any]]:
        wanted = min(work.asked, len(found))
        for name, result in work.decoded(order, blank):
            if isinstance(result, ImagesError):
                skipped.append(Skipped(name, str(result)))
                continue
            names.append(name)
            yield result
            if work.progress:
                work.progress(len(names), wanted)
            if len(names) == work.asked:
                return
        if len(names) < MINIMUM_IMAGES:
            usable = f"{len(names)} usable images among {len(found)} image files"
            why = f" (unusable: {skipped[0].name}: {skipped[0].reason})" if skipped else ""
            beside = f" ({left_out:,} arrays beside pictures are not read)" if left_out else ""
            raise ImagesError(
                f"{work.folder}: {usable}, at least {MINIMUM_IMAGES} are needed{why}{beside}; give more "
                "images"
            )

    work.write(blank, rows())
    return replace(blank, names=tuple(names), skipped=tuple(skipped))


def _decode_again(work: _Work, sample: Sample) -> None:
    """Write the pixels of an earlier sample; nothing is replaced, another sample would not be comparable."""

    def rows() -> Iterator[NDArray[Any]]:
        for done, (name, result) in enumerate(work.decoded(sample.names, sample), 1):
            if isinstance(result, ImagesError):
                raise ImagesError(
                    f"{work.folder / name}: belongs to this run's fixed sample and {result}; bring it back, "
                    f"or delete {work.cache} to draw another sample (its numbers will not be comparable)"
                )
            yield result
            if work.progress:
                work.progress(done, len(sample.names))

    work.write(sample, rows())


def _notes(work: _Work, sample: Sample) -> Iterator[str]:
    count = len(sample.names)
    if count < work.asked:
        yield f"{work.folder}: {count:,} usable images, {work.asked:,} asked for: all of them are measured"
    if sample.skipped:
        first = sample.skipped[0]
        yield f"{len(sample.skipped):,} unusable image files passed over, first {first.name}: {first.reason}"
    yield from work.recipe.notes(sample.files)
    if sample.left_out:
        yield f"{sample.left_out:,} arrays (.npy, .npz) beside the pictures were not read"


def check_unit(held_out: ImageSet, preprocessing: Preprocessing) -> None:
    """Refuse a mean or standard deviation of values up to 255 where images are in [0, 1].

    All images would look alike to the network, and it would still give out numbers.

    Raises:
        ImagesError: they are in another unit than the images.
    """
    if held_out.normalised or held_out.scaling not in _UNIT_INTERVAL:
        return
    mean, std = preprocessing.mean, preprocessing.std
    if min(mean) < 0 or max(mean) > 1 or max(std) > _LARGEST_STD:
        given = f"mean {', '.join(f'{m:g}' for m in mean)} and std {', '.join(f'{s:g}' for s in std)}"
        raise ImagesError(
            f"images are in [0, 1] and the network's {given} are of another range; divide both by 255 if "
            "they are of 8-bit values (--mean and --std), or say with --scale what the training divided by"
        )
