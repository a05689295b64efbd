"""Images in, seeded views out: sources, the data set, the order of an epoch, the loader.

What a view looks like depends on (seed, epoch, index) alone, and which images form step t on (seed, epoch, t)
alone; so neither workers nor interruptions nor the number of processes change what the network sees.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from dse_monitor import scenes
from dse_monitor.seeding import seeded
from dse_monitor.trainers.method import Plan, Views
from dse_monitor.trainers.settings import TrainingError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
SCENE_CACHE_BYTES = 2**30  # drawn scenes are kept up to this size
LONGEST_BAD_STREAK = 100  # unreadable images in a row before we stop looking for a readable one
MOST_LOSSES = 3  # times in an epoch that killed loader processes are replaced


# Sources -------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Numbered images."""

    def __len__(self) -> int:
        """How many."""
        ...

    def name(self, index: int) -> str:
        """What to call image ``index`` in messages."""
        ...

    def load(self, index: int) -> Image.Image:
        """Image ``index`` in RGB; raises OSError or ValueError if it cannot be read."""
        ...


class Folder:
    """The image files below a folder, sorted by path: flat, nested or one folder per class, labels ignored.

    Raises:
        TrainingError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise TrainingError(f"{folder} is no folder; --data wants a folder of images, or 'scenes'")
        self.paths = sorted(
            os.path.join(where, name)
            for where, names in _walk(folder)
            for name in names
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")
        )
        if not self.paths:
            kinds = " ".join(sorted(EXTENSIONS))
            raise TrainingError(f"{folder} holds no images; looked for {kinds} in it and below")

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path."""
        return self.paths[index]

    def load(self, index: int) -> Image.Image:
        """Decode one file; 16-bit greyscale is scaled, everything else converted by Pillow."""
        with Image.open(self.paths[index]) as image:
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
            return image.convert("RGB")


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder below once, with the names in it: links are followed, and may lead back up."""
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield where, names


class Scenes:
    """The built-in scenes, drawn once and then kept in memory that worker processes share."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.size, self.seed, self.count = size, seed, count
        kept = count if count * size * size * 3 <= SCENE_CACHE_BYTES else 0
        self.pixels = torch.zeros((kept, size, size, 3), dtype=torch.uint8).share_memory_()
        self.drawn = torch.zeros(kept, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """The number."""
        return f"scene {index}"

    def load(self, index: int) -> Image.Image:
        """Draw one scene, or take it from the cache."""
        if index < len(self.drawn) and self.drawn[index]:
            return Image.fromarray(self.pixels[index].numpy())
        pixels, _ = scenes.generate(index, self.size, self.seed)
        if index < len(self.drawn):
            self.pixels[index] = torch.from_numpy(pixels)
            self.drawn[index] = True
        return Image.fromarray(pixels)


def open_source(data: str, *, scene_count: int, image_size: int, seed: int) -> Source:
    """``scenes``, or a folder.

    Raises:
        TrainingError: the folder is missing or empty.
    """
    return Scenes(scene_count, image_size, seed) if data == "scenes" else Folder(Path(data).expanduser())


# Views ---------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """Which image of which epoch, for which micro-batch."""

    epoch: int
    image: int
    micro_batch: int


class Sample(NamedTuple):
    """One image's views and what went wrong on the way."""

    micro_batch: int
    views: Views
    unreadable: tuple[str, ...]


class Batch(NamedTuple):
    """A collated micro-batch and the unreadable files met while making it, each with its reason."""

    views: Views
    unreadable: tuple[str, ...]


@dataclass
class ViewsDataset(Dataset[Sample]):
    """Views of a source's images; an unreadable image is replaced by the next readable one and reported."""

    source: Source
    transform: Callable[[Image.Image], Views]
    seed: int

    def __getitem__(self, key: Key) -> Sample:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Views of ``key.image`` in epoch ``key.epoch``."""
        unreadable: list[str] = []
        for offset in range(min(LONGEST_BAD_STREAK, len(self.source))):
            index = (key.image + offset) % len(self.source)
            try:
                image = self.source.load(index)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                unreadable.append(f"{self.source.name(index)}: {error}")
                continue
            with seeded(self.seed, key.epoch, key.image):
                return Sample(key.micro_batch, self.transform(image), tuple(unreadable))
        raise TrainingError(f"{len(unreadable)} images in a row cannot be read, the first is {unreadable[0]}")


@dataclass
class Collator:
    """Joins samples with the method's own collator under a seed of its own."""

    join: Callable[[Sequence[Views], int], Views]
    seed: int
    rank: int

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """One micro-batch."""
        micro_batch = samples[0].micro_batch
        with seeded(self.seed, micro_batch, self.rank, -1):
            views = self.join([sample.views for sample in samples], micro_batch)
        return Batch(views, tuple(bad for sample in samples for bad in sample.unreadable))


@dataclass
class Order(Sampler[list[Key]]):
    """The micro-batches of one epoch for one process, from optimiser step ``first_step`` on.

    The images of an optimiser step are the same whatever the number of processes and micro-batches; process r
    takes the r-th part of each. ``given`` micro-batches from there on are left out.
    """

    plan: Plan
    seed: int
    epoch: int = 0
    first_step: int = 0
    given: int = 0

    def __iter__(self) -> Iterator[list[Key]]:
        return islice(self._all(), self.given, None)

    def __len__(self) -> int:
        return (self.plan.steps_per_epoch - self.first_step) * self.plan.accumulate - self.given

    def _all(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.plan.images, generator=generator).tolist()
        accumulate = self.plan.accumulate
        size = self.plan.batch_size // self.plan.world_size // accumulate
        for step in range(self.first_step, self.plan.steps_per_epoch):
            for micro in range(accumulate):
                number = (self.epoch * self.plan.steps_per_epoch + step) * accumulate + micro
                start = step * self.plan.batch_size + (micro * self.plan.world_size + self.plan.rank) * size
                yield [Key(self.epoch, index, number) for index in order[start : start + size]]


# Loading -------------------------------------------------------------------------------------------------


class Loader:
    """The batches of ``order``; set its epoch and first step before iterating.

    Loader processes that are killed (mostly for memory) are replaced, and what they had in hand is drawn
    again: the same, since a view depends on its key alone.

    Args:
        dataset: the views.
        order: which images form a micro-batch.
        collator: joins samples.
        workers: loader processes; 0 loads in this one.
        pin: page-locked memory, from which copies to a GPU do not wait.
        say: where to tell of a loss.
    """

    def __init__(
        self,
        dataset: ViewsDataset,
        order: Order,
        collator: Collator,
        *,
        workers: int,
        pin: bool,
        say: Callable[[str], None] = print,
    ) -> None:
        self.dataset, self.order, self.collator = dataset, order, collator
        self.workers, self.pin, self.say = workers, pin, say
        self.processes: list[BaseProcess] = []
        self._torch: DataLoader[Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """One epoch.

        Raises:
            TrainingError: too many images cannot be read, or loader processes are killed again and again.
        """
        losses = self.order.given = 0
        while True:
            try:
                for batch in self._begin():
                    self.order.given += 1
                    yield batch
                return
            except (RuntimeError, OSError, EOFError):
                dead = [process for process in self.processes if not process.is_alive()]
                if not dead:
                    raise
                losses += 1
                self._report(dead, losses)
                self.close()
            except TrainingError as error:  # from a loader process it comes with a trace before it
                raise TrainingError(str(error).strip().rpartition("TrainingError: ")[2]) from error

    def close(self) -> None:
        """End the loader processes at once: they hold nothing, and one may wait for a lock of a dead one."""
        for process in self.processes:
            process.kill()
        self.processes, self._torch = [], None

    def _begin(self) -> Iterator[Batch]:
        if self._torch is None:
            self._torch = DataLoader(
                self.dataset,
                batch_sampler=self.order,
                num_workers=self.workers,
                collate_fn=self.collator,
                pin_memory=self.pin,
                persistent_workers=self.workers > 0,
                # of its own, so that starting an epoch does not move the global one
                generator=torch.Generator().manual_seed(0),
                prefetch_factor=4 if self.workers else None,
                worker_init_fn=_leave_signals_to_the_trainer,
            )
        others, heard = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
        batches = iter(self._torch)
        if not self.processes:
            self.processes = [p for p in multiprocessing.active_children() if p not in others]
        if signal.getsignal(signal.SIGCHLD) is not heard:
            # torch's handler raises in the middle of whatever runs when a loader process dies; waiting for a
            # batch finds it too, between two steps
            signal.signal(signal.SIGCHLD, heard or signal.SIG_DFL)
        return batches

    def _report(self, dead: Sequence[BaseProcess], losses: int) -> None:
        ends = sorted({-(process.exitcode or 0) for process in dead})
        what = f"{len(dead)} loader process(es) died (signal {', '.join(map(str, ends))})"
        if losses > MOST_LOSSES:
            raise TrainingError(
                f"{what}; that happened {losses} times in this epoch, as a lack of memory makes it: give "
                "fewer --workers; --resume goes on from the last checkpoint"
            )
        self.say(f"warning   {what}; new ones draw their batches again")


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Schedulers signal whole process groups; a worker that died of it would cost the final checkpoint."""
    del worker
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
