"""One checkpoint -> one Evaluation: the only place where loading, images, tokens, metric and maps meet.

Importing this module loads no torch, so that the process which writes the settings down does not need it;
what evaluates imports it on first use.

Shapes: n images, B of them in a metric batch, N tokens per image, D feature width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dse_monitor.errors import (
    CheckpointError,
    DeviceError,
    DSEError,
    FeatureError,
    ImagesError,
    NonFiniteFeatures,
    one_line,
)
from dse_monitor.evaluation import images, maps
from dse_monitor.evaluation.config import EvaluationConfig, Placement
from dse_monitor.facts import reading
from dse_monitor.preprocessing import Preprocessing, side
from dse_monitor.runs.record import Evaluation, Settings, Source

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dse_monitor.encoder import Encoder
    from dse_monitor.metric import Components

LOGGER = logging.getLogger("dse_monitor.images")

Progress = Callable[[str, int, int], None]  # (stage, done, total): "read", "images", "forward", "metric"

CONSTANT_SPREAD = 1e-5  # relative; tokens that differ by less differ by float32 rounding alone. Ours
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class HeldOut:
    """The held-out images, decoded on first use and kept; loads no torch.

    Args:
        config: which, and how many.
        cache: folder for the image sample and its pixels.
    """

    def __init__(self, config: EvaluationConfig, cache: str):
        self._config, self._cache = config, cache
        self._image_sets: dict[tuple[object, ...], images.ImageSet] = {}

    def at(
        self,
        preprocessing: Preprocessing,
        progress: Progress | None = None,
        *,
        transform: images.Transform | None = None,
        transform_id: str = "",
    ) -> images.ImageSet:
        """The images as a network sees them, at the size of the configuration where that names one.

        What a user should know of them is logged, once for each way of looking at them.

        Args:
            preprocessing: how the network's maker prepares images.
            progress: called as progress("images", done, total).
            transform: makes what the network sees of a file, in place of all that; see `images.prepare`.
            transform_id: what tells it from other transforms.

        Raises:
            ImagesError, OutputError: see `images.prepare`.
        """
        config = self._config
        if transform is not None and (config.bands or config.scale is not None):
            raise ImagesError("--bands and --scale have no meaning for a network that has its own transform")
        wanted = preprocessing.at(config.image_size)
        sizes = (wanted.channels, wanted.image_size, wanted.covered)
        key = (*sizes, wanted.crop_mode, wanted.interpolation, transform_id)
        if key not in self._image_sets:
            self._image_sets[key] = images.prepare(
                config.images,
                wanted,
                num_images=config.num_images,
                seed=config.seed,
                cache=self._cache,
                bands=config.bands,
                scale=config.scale,
                transform=transform,
                transform_id=transform_id,
                progress=_of_stage(progress, "images"),
            )
            for note in self._image_sets[key].notes:
                LOGGER.warning(note)
        return self._image_sets[key]


class Evaluator:
    """Measures checkpoints, one call each, keeping images and device between calls.

    Args:
        config: what to measure, and how.
        place: where.
        held_out: the images of ``config``, where they were looked at already.
        clock: seconds since 1970, for the record.

    Raises:
        DeviceError: the device asked for is not there.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        place: Placement,
        *,
        held_out: HeldOut | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.config, self.place = config, place
        self._held_out = held_out or HeldOut(config, place.cache)
        self.device = resolve_device(place.device)
        self.precision = _precision(config.precision, self.device)
        self._clock = clock

    def image_set(self, preprocessing: Preprocessing, progress: Progress | None = None) -> images.ImageSet:
        """The held-out images as a network sees them, decoded on first use.

        Raises:
            ImagesError, OutputError: see `images.prepare`.
        """
        return self._held_out.at(preprocessing, progress)

    def wake(self) -> None:
        """Have the device compute something: its first product takes seconds on a GPU."""
        import torch

        one = torch.ones(1, 1, device=self.device)
        (one @ one).item()

    def __call__(
        self,
        path: Path | str,
        progress: Progress | None = None,
        *,
        name: str | None = None,
        aliases: tuple[str, ...] = (),
    ) -> Evaluation:
        """Measure one checkpoint. The file is read once and closed before anything is computed.

        What is wrong with the file ends in the record, not in an exception: ``failed`` when it cannot be
        read or measured, ``invalid`` when weights or tokens are not finite, or when all tokens are equal.

        Args:
            path: the checkpoint.
            progress: called as progress(stage, done, total).
            name: what the record calls the file, by convention its path relative to the run; `path` if None.
            aliases: other names of the same content.

        Raises:
            ImagesError, OutputError: the held-out images cannot be used, or results cannot be written.
            DeviceError: the device is full or broken, or this machine is out of memory.
            OSError: the file is gone, or cannot be reached; says nothing about what was in it.
        """
        path = Path(path)
        stopwatch = _Stopwatch()
        settings: Settings | None = None
        source = Source(path=str(path))
        measured: dict[str, Any] = {"status": "failed"}
        try:
            with stopwatch("read"):
                encoder = self._load(path, progress)
            source = encoder.source
            if encoder.non_finite:
                raise _Invalid(_weights_reason(encoder), "NonFiniteWeights")
            with stopwatch("images"):
                own = {"transform": encoder.transform, "transform_id": encoder.transform_id}
                held_out = self._held_out.at(encoder.preprocessing, progress, **own)
            images.check_unit(held_out, encoder.preprocessing)
            settings = self._settings(encoder, held_out)
            measured = self._measure(encoder, held_out, settings, stopwatch, progress)
        except _Invalid as error:
            measured = {"status": "invalid", "reason": str(error), "error": error.kind}
        except NonFiniteFeatures as error:
            measured = {"status": "invalid", "reason": one_line(error), "error": type(error).__name__}
        except (CheckpointError, FeatureError) as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _GONE:
                raise error.__cause__ from error
            measured = {"status": "failed", "reason": one_line(error), "error": type(error).__name__}
        except (DSEError, OSError):
            raise  # images, device, output, disk: not the checkpoint's fault
        except Exception as error:  # a file can break its reader in ways nobody foresaw; the watch goes on
            if _is_device_failure(error):
                raise DeviceError(
                    f"{self.device}: {one_line(error)}; free memory or use another device, and start again"
                ) from error
            reason = f"{path}: unexpected {type(error).__name__}: {one_line(error)}; please report it"
            measured = {"status": "failed", "reason": reason, "error": type(error).__name__}
        return Evaluation(
            source=_named(source, path, name, aliases),
            settings=settings,
            seconds=stopwatch.seconds(),
            wall_time=self._clock(),
            **measured,
        )

    def _load(self, path: Path, progress: Progress | None) -> Encoder:
        from dse_monitor.checkpoints import load_encoder

        if progress:
            progress("read", 0, 1)
        encoder = load_encoder(path, self.config)
        if progress:
            progress("read", 1, 1)
        return encoder

    def _settings(self, encoder: Encoder, held_out: images.ImageSet) -> Settings:
        config, how = self.config, held_out.preprocessing
        channels = held_out.pixels.shape[-1]
        transformed = held_out.normalised  # by the user's own code, after which nothing is done
        return Settings(
            images=held_out.fingerprint,
            num_images=len(held_out),
            resize=side(held_out.size if transformed else how.covered),
            crop=side(held_out.size),
            mean=(0.0,) * channels if transformed else encoder.preprocessing.mean,
            std=(1.0,) * channels if transformed else encoder.preprocessing.std,
            batch=config.batch,
            group=config.group,
            local_clusters=config.local_clusters,
            global_clusters=config.global_clusters,
            normalize=config.normalize,
            layer=str(config.layer),
            precision=self.precision,
            seed=config.seed,
            interpolation=how.interpolation,
            crop_mode=how.crop_mode,
            channels=channels,
            bands=held_out.bands,
            scaling=held_out.scaling,
            reading=reading(encoder.arch, encoder.facts),
            facts=encoder.facts,
        )

    def _measure(
        self,
        encoder: Encoder,
        held_out: images.ImageSet,
        settings: Settings,
        stopwatch: _Stopwatch,
        progress: Progress | None,
    ) -> dict[str, Any]:
        """Fields of a ``scored`` Evaluation. The features of one batch are in memory at a time."""
        from dse_monitor.metric import average, companions, measure
        from dse_monitor.metric.labels import first_labels
        from dse_monitor.metric.precision import full_float32

        config = self.config
        components: list[Components] = []
        others: list[dict[str, float]] = []
        examples = maps.Examples()
        parts = list(batches(len(held_out), config.batch, config.group))
        encoder.to(self.device)
        how = {
            name: getattr(config, name)
            for name in ("group", "local_clusters", "global_clusters", "normalize")
        }
        for index, part in enumerate(parts):
            with stopwatch("forward"), full_float32():
                tokens = encoder.encode(
                    held_out.pixels[part],
                    device=self.device,
                    precision=self.precision,
                    micro_batch=config.micro_batch,
                    normalised=held_out.normalised,
                    progress=_shifted(progress, part.start, len(held_out)),
                )
                collapsed = is_constant(
                    tokens
                )  # looking at numbers also waits for the device: honest seconds
            if collapsed:
                raise _Invalid(_constant_reason(encoder, tokens), "ConstantFeatures")
            with stopwatch("metric"):
                components.append(measure(tokens, **how, seed=config.seed + index))
            with stopwatch("companions"):
                others.append(companions.measure(tokens))
            if self.place.maps is not None and examples.missing:
                with stopwatch("maps"):
                    labels = first_labels(tokens, examples.missing, **how, seed=config.seed + index)
                    first = tokens[: examples.missing].float().cpu().numpy()
                    examples.add(first, *(own.numpy() for own in labels))
            del tokens  # before the next batch is made
            if progress:
                progress("metric", index + 1, len(parts))
        map_file = ""
        if self.place.maps is not None:
            with stopwatch("maps"):
                map_file = self._paint(examples, encoder, held_out, settings)
        return {
            "status": "scored",
            "components": average(components),
            "companions": _means(others),
            "map_file": map_file,
        }

    def _paint(
        self, examples: maps.Examples, encoder: Encoder, held_out: images.ImageSet, settings: Settings
    ) -> str:
        """Maps of the first images; the file's name tells content and settings."""
        assert self.place.maps is not None
        tokens = examples.tokens()
        if self.config.normalize:
            tokens = tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
        source = encoder.source
        content = source.content or hashlib.sha256(os.fsencode(source.path)).hexdigest()
        folder = Path(self.place.maps)
        maps.paint_images(folder, held_out.pixels[: len(tokens)], self.config.preview_bands or ())
        return maps.paint_tokens(
            folder,
            tokens,
            examples.labels(),
            grid=token_grid(encoder, held_out.size, tokens.shape[1]),
            name=f"{content[:16]}-{settings.fingerprint[:6]}",
            images=held_out.fingerprint,
        )


def batches(count: int, batch: int, group: int) -> Iterator[slice]:
    """Split `count` images into metric batches of about `batch` images, equal up to one group.

    M_dim depends on the images in a batch, so a short last batch would bias the mean: there are
    round(count / batch) batches (at least one) and no remainder. 2,048 images in batches of 1,024 make two;
    1,100 make one of 1,100; 1,600 make two of 800. Batches hold whole groups; only the last group of all
    may be short.
    """
    groups = -(-count // group)
    parts = min(max(1, int(count / batch + 0.5)), groups)
    bounds = [min(groups * i // parts * group, count) for i in range(parts + 1)]
    return (slice(start, stop) for start, stop in itertools.pairwise(bounds))


def resolve_device(name: str) -> torch.device:
    """The device a name stands for; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: this machine, or this build of torch, does not have it.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"{count} CUDA device{'s' * (count != 1)}"
            raise DeviceError(
                f"{name}: torch {torch.__version__} finds {found} here; use another or --device cpu"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"mps: torch {torch.__version__} finds no Apple GPU here; use --device cpu")
    return device


def token_grid(encoder: Encoder, size: tuple[int, int], count: int) -> tuple[int, int]:
    """Rows and columns of `count` tokens of images of (height, width); (0, 0) if they are no such grid.

    Networks that take images of any size have a grid in proportion, and round it down or up.
    """
    own = [
        (sides * now, usual)
        for sides, now, usual in zip(encoder.grid, size, encoder.preprocessing.image_size, strict=True)
    ]
    for rows, columns in ([a // b for a, b in own], [-(-a // b) for a, b in own]):
        if rows * columns == count:
            return rows, columns
    return 0, 0


def is_constant(tokens: Tensor) -> bool:
    """Whether all tokens [B, N, D] are equal but for rounding, which makes every distance noise."""
    first = tokens[:1, :1]
    bound = CONSTANT_SPREAD * first.abs().max()
    if bool((tokens[0] - first[0]).abs().max() > bound):  # one image nearly always settles it
        return False
    return all(bool((image - first[0]).abs().max() <= bound) for image in tokens)


class _Invalid(Exception):
    """Measured or read, and meaningless."""

    def __init__(self, reason: str, kind: str):
        super().__init__(reason)
        self.kind = kind


class _Stopwatch:
    """Adds up wall seconds by stage; `total` runs from the start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._stages[stage] = self._stages.get(stage, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        stages = self._stages | {"total": time.perf_counter() - self._start}
        return {stage: round(seconds, 4) for stage, seconds in stages.items()}


def _precision(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" else "float32"


def _named(source: Source, path: Path, name: str | None, aliases: tuple[str, ...]) -> Source:
    """The source under its name in the record, with size and time of the file where reading failed early."""
    changes: dict[str, Any] = {"path": Path(name).as_posix() if name else path.as_posix(), "aliases": aliases}
    if not source.size:
        try:
            status = path.stat()
            changes |= {"size": status.st_size, "mtime": status.st_mtime}
        except OSError:
            pass  # gone meanwhile; the reason says so
    return dataclasses.replace(source, **changes)


def _means(batches: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each number over the batches; what is not finite in one of them is left out."""
    means = {name: math.fsum(batch[name] for batch in batches) / len(batches) for name in batches[0]}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _weights_reason(encoder: Encoder) -> str:
    names = encoder.non_finite
    return (
        f"{encoder.source.path}: NaN or infinite weights in {len(names)} of the encoder's tensors, first "
        f"{names[0]}; the training diverged at or before this checkpoint, go back to an earlier one"
    )


def _constant_reason(encoder: Encoder, tokens: Tensor) -> str:
    count, per_image = tokens.shape[:2]
    return (
        f"{encoder.source.path}: all {per_image} tokens of all {count} images are equal; the features have "
        "collapsed to one point, go back to an earlier checkpoint"
    )


def _is_device_failure(error: Exception) -> bool:
    """Out of memory outside the forward pass, or an accelerator whose context is lost."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    signs = ("CUDA error", "out of memory", "allocate memory")  # the last is the CPU allocator's
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _of_stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return (lambda done, total: progress(stage, done, total)) if progress else None


def _shifted(progress: Progress | None, before: int, total: int) -> Callable[[int, int], None] | None:
    """Progress of one batch as progress of all images."""
    return (lambda done, _: progress("forward", before + done, total)) if progress else None
