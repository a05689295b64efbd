"""An encoder read from a checkpoint: images in, the dense tokens [B, N, D] of a layer out.

Shapes: n images, B of them at a time (the micro-batch), C channels, H x W pixels, N tokens per image, D
feature width.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dse_monitor.errors import DeviceError, FeatureError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dse_monitor.facts import Fact
    from dse_monitor.preprocessing import Preprocessing
    from dse_monitor.runs.record import Source
    from dse_monitor.tokens import Tokens

# Images per forward pass; ours. A ViT-S/16 needs about 20 MB of activations per image, so both leave room for
# others.
MICRO_BATCH = {"cpu": 32, "cuda": 256, "mps": 64}
_RANGE = {"uint8": 255, "uint16": 65535, "float32": 1}  # of a pixel's type: what stands for 1
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder:
    """A network with the weights of one checkpoint, in evaluation mode and without gradients.

    Attributes:
        arch: the network in words ("vit 384x12, 6 heads, patch 16").
        source: the file it came from and what was recognised in it.
        epoch: epochs done, or None.
        step: optimiser steps done, or None.
        preprocessing: how images are prepared for it: channels, size, crop, mean, std.
        facts: what changes its tokens and is not to be seen in the weights, with what each rests on.
        grid: rows and columns of the dense tokens at the image size of `preprocessing`.
        width: D.
        layer: the layer whose tokens are returned, from 1; None for the last.
        layers: layers there are to choose from; 0 where only the last can be read.
        any_size: whether images of other sizes are possible.
        notes: what was assumed or left out when the file was read, in full sentences.
        non_finite: names of tensors that hold NaN or infinite values; empty for a healthy checkpoint.
        transform: makes what the network sees of an image's path, [C, H, W], where the network's owner says
            how; None: `preprocessing` does.
        transform_id: what tells it from other transforms; empty without one.
    """

    def __init__(
        self,
        module: nn.Module,
        source: Source,
        *,
        tokens: Callable[[nn.Module, Tensor, int | None], Tokens],
        grid: tuple[int, int],
        width: int,
        preprocessing: Preprocessing,
        any_size: bool = False,
        convolutional: bool = False,
        layer: int | None = None,
        layers: int = 0,
        facts: tuple[Fact, ...] = (),
        notes: tuple[str, ...] = (),
        non_finite: tuple[str, ...] = (),
        transform: Callable[[Path], Any] | None = None,
        transform_id: str = "",
    ):
        self.module = module.eval().requires_grad_(False)
        self.source = source
        self.arch = source.arch
        self.epoch = source.epoch
        self.step = source.step
        self.preprocessing = preprocessing
        self.grid = grid
        self.width = width
        self.layer = layer
        self.layers = layers
        self.facts = facts
        self.any_size = any_size
        self._tokens = tokens
        self._channels_last = convolutional  # faster on CUDA for convolutions
        self.notes = list(notes)
        self.non_finite = non_finite
        self.transform = transform
        self.transform_id = transform_id
        self.device = torch.device("cpu")

    def __repr__(self) -> str:
        return f"Encoder({self.arch}; {self.source.layout or 'unnamed layout'}; {self.source.path})"

    def to(self, device: torch.device | str) -> Encoder:
        """Move the weights to `device`; returns the encoder itself.

        Raises:
            DeviceError: the device does not exist or has no room for the weights.
        """
        device = torch.device(device)
        try:
            self.module.to(device)
            if self._channels_last and device.type == "cuda":
                self.module.to(memory_format=torch.channels_last)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise DeviceError(
                f"the encoder ({self.arch}) could not be moved to {device}: {_first_line(error)}. "
                "Choose another with --device"
            ) from error
        self.device = device
        return self

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images the network sees, pixels."""
        return self.preprocessing.image_size

    @property
    def num_tokens(self) -> int:
        """N at `image_size`."""
        return self.grid[0] * self.grid[1]

    def dense_tokens(self, images: Tensor) -> Tensor:
        """The dense tokens [B, N, D] alone; see `tokens`."""
        return self.tokens(images).dense

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tokens:
        """Tokens of normalised images: the dense ones, the class token and registers.

        Of transformers they are those after the final norm, of other networks the last stage's map, read row
        by row; docs/networks.md says it of each.

        Args:
            images: [B, C, H, W] on any device, normalised with the mean and std of `preprocessing`.

        Returns:
            Tokens on the encoder's device, the dense ones [B, N, D].

        Raises:
            FeatureError: the images have a size this network cannot take, or its output is no map of tokens.
        """
        channels = self.preprocessing.channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(f"images must be [B, {channels}, H, W], not {list(images.shape)}")
        height, width = images.shape[-2:]
        if not self.any_size and (height, width) != self.image_size:
            known = " x ".join(map(str, self.image_size))
            if self.transform is not None:
                raise FeatureError(
                    f"{self.arch} takes images of {known} pixels and its transform gave {height} x {width}; "
                    "have both agree, or say any_size=True"
                )
            raise FeatureError(
                f"{self.arch} has learned positions for {known} pixels and was given {height} x {width}; "
                "leave --image-size out"
            )
        tokens = self._tokens(self.module, images.to(self.device), self.layer)
        dense = tokens.dense
        if dense.ndim != 3 or dense.shape[0] != images.shape[0]:
            raise FeatureError(f"{self.arch} returned {list(dense.shape)} instead of [B, N, D]")
        return tokens

    def encode(
        self,
        pixels: np.ndarray | Tensor,
        *,
        device: torch.device | str | None = None,
        precision: str = "float32",
        micro_batch: int | None = None,
        normalised: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Dense tokens of images, normalised on the device.

        Integers are brought to [0, 1] by their type's range; float32 values are in the unit of the mean
        and std of `preprocessing` already.

        When the device runs out of memory the micro-batch is halved, down to one image, and stays halved. The
        tokens do not depend on it beyond floating-point rounding.

        Args:
            pixels: [n, H, W, C], uint8, uint16 or float32.
            device: where to compute; where the encoder is by default.
            precision: ``float32``, or ``bfloat16`` / ``float16`` for the forward pass (autocast).
            micro_batch: images per forward pass; by device if None.
            normalised: whether the pixels are what the network sees: float32, to which nothing is done.
            progress: called as progress(images done, n).

        Returns:
            [n, N, D] float32 on that device.

        Raises:
            DeviceError: out of memory even for a single image.
            FeatureError: see :meth:`dense_tokens`.
            ValueError: pixels of another type or shape, or an unknown precision.
        """
        kind = _pixel_kind(pixels, self.preprocessing.channels, normalised)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        if device is not None and torch.device(device) != self.device:
            self.to(device)
        size = micro_batch or MICRO_BATCH.get(self.device.type, 32)
        if size < 1:
            raise ValueError(f"micro_batch must be at least 1, not {micro_batch}")
        total = len(pixels)
        out: Tensor | None = None
        done = 0
        with ThreadPoolExecutor(1, thread_name_prefix="pixels") as reading:
            # The next images are read from the disk while the network is busy with these.
            coming = reading.submit(self._read, pixels[:size])
            while done < total:
                batch = coming.result()
                coming = reading.submit(self._read, pixels[done + len(batch) : done + len(batch) + size])
                try:
                    tokens = self._forward(batch, kind, precision)
                except torch.OutOfMemoryError as error:
                    if size == 1:
                        raise DeviceError(
                            f"{self.device} has no room for a single image through {self.arch}: "
                            f"{_first_line(error)}. Free memory, or use --device cpu"
                        ) from error
                    size = max(1, len(batch) // 2)
                    _release(self.device)
                    coming = reading.submit(self._read, pixels[done : done + size])
                    continue
                if out is None:
                    out = torch.empty((total, *tokens.shape[1:]), dtype=torch.float32, device=self.device)
                out[done : done + len(tokens)] = tokens
                done += len(tokens)
                if progress is not None:
                    progress(done, total)
        return torch.empty((0, self.num_tokens, self.width)) if out is None else out

    def _read(self, pixels: np.ndarray | Tensor) -> Tensor:
        """Images in memory, on CUDA in pages from which copying does not wait for anything else."""
        if isinstance(pixels, torch.Tensor):
            batch = pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels
        else:
            own = np.array(pixels)
            batch = torch.from_numpy(own.view(np.int16) if own.dtype == np.uint16 else own)
        return batch.pin_memory() if self.device.type == "cuda" and batch.device.type == "cpu" else batch

    @torch.inference_mode()
    def _forward(self, batch: Tensor, kind: str, precision: str) -> Tensor:
        images = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if kind == "uint16":  # travels as int16, with which every device can compute
            images = images.int() & 0xFFFF
        images = images.float()
        if kind != "normalised":
            mean = torch.tensor(self.preprocessing.mean, device=self.device).view(-1, 1, 1) * _RANGE[kind]
            std = torch.tensor(self.preprocessing.std, device=self.device).view(-1, 1, 1) * _RANGE[kind]
            images = (images - mean) / std
        if self._channels_last and self.device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        half = precision != "float32"
        with torch.autocast(self.device.type, dtype=PRECISIONS[precision]) if half else nullcontext():
            return self.dense_tokens(images).float()


def _pixel_kind(pixels: np.ndarray | Tensor, channels: int, normalised: bool) -> str:
    """Type of the pixels, or "normalised".

    Raises:
        ValueError: they are of another type or shape than :meth:`Encoder.encode` takes.
    """
    kind = str(pixels.dtype).removeprefix("torch.")
    allowed = ("float32",) if normalised else tuple(_RANGE)
    if kind not in allowed or len(pixels.shape) != 4 or pixels.shape[-1] != channels:
        expected = f"{' or '.join(allowed)} [n, H, W, {channels}]"
        raise ValueError(f"pixels must be {expected}, not {kind} {list(pixels.shape)}")
    return "normalised" if normalised else kind


def _release(device: torch.device) -> None:
    """Give cached blocks back, so that the next attempt finds them in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
