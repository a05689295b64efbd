"""Which patches are hidden, drawn beside the images: blocks or single ones (iBOT), multi-blocks (I-JEPA)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dse_monitor.trainers.method import Views, collate

_ATTEMPTS = 10  # tries to place one more block before a mask is taken as it is; ibot loader.py
_SMALLEST_ASPECT = 0.3  # blocks are drawn between this and its inverse; ibot loader.py
_TIMEOUT = 20  # tries to place a context before one target's area is given back; ijepa multiblock.py


def mask_ratio(ratios: Sequence[float], spreads: Sequence[float]) -> float:
    """One ratio per crop: each entry is drawn from ratio +- spread, then one of the entries is taken.

    A single spread holds for every ratio.
    Draws from Python's generator, in the order of facebookresearch's iBOT loader.
    """
    if len(spreads) == 1:
        spreads = [*spreads] * len(ratios)
    drawn = [
        random.uniform(ratio - spread, ratio + spread) if spread > 0 else ratio
        for ratio, spread in zip(ratios, spreads, strict=True)
    ]
    return random.choice(drawn) if len(drawn) > 1 else drawn[0]


def block_mask(rows: int, columns: int, ratio: float) -> NDArray[np.bool_]:
    """A union of random rectangles that hides at most ``ratio`` of the patches, as in BEiT and iBOT.

    Blocks have an area between (shorter side // 3)^2 and what is still to be hidden, and a log-uniform aspect
    ratio; one is placed only if it lies within the grid and hides something new without hiding too much.

    Args:
        rows: patches vertically.
        columns: patches horizontally.
        ratio: share to hide.

    Returns:
        bool [rows, columns], true where hidden. Draws from Python's generator.
    """
    mask = np.zeros((rows, columns), dtype=np.bool_)
    wanted, smallest = ratio * rows * columns, (min(rows, columns) // 3) ** 2
    hidden = 0
    while hidden < wanted:
        for _ in range(_ATTEMPTS):
            area = random.uniform(smallest, wanted - hidden)
            aspect = math.exp(random.uniform(math.log(_SMALLEST_ASPECT), math.log(1 / _SMALLEST_ASPECT)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = random.randint(0, rows - height), random.randint(0, columns - width)
            block = mask[top : top + height, left : left + width]
            new = block.size - int(block.sum())
            if 0 < new <= wanted - hidden:
                block[:] = True
                hidden += new
                break
        else:
            break  # nothing fits any more
    return mask


def random_mask(rows: int, columns: int, ratio: float) -> NDArray[np.bool_]:
    """Single patches, ``ratio`` of them rounded down, as in iBOT's runs with random masks.

    Returns:
        bool [rows, columns], true where hidden. Draws from numpy's generator.
    """
    mask = np.arange(rows * columns) >= rows * columns - int(ratio * rows * columns)
    np.random.shuffle(mask)
    return mask.reshape(rows, columns)


@dataclass(frozen=True, kw_only=True)
class MultiBlock:
    """I-JEPA's collator: joins the images and draws context and target blocks for each of them.

    Block sizes are drawn once per batch from a generator seeded with the step, so that all processes agree;
    places are drawn per image from torch's global generator. Index lists are cut to the shortest of the
    batch (src/masks/multiblock.py).

    Attributes:
        grid: patches per side.
        targets: target blocks per image.
        contexts: context blocks per image.
        target_scale: range of a target's area, as a share of the grid.
        target_aspect: range of its aspect ratio.
        context_scale: range of a context's area; its aspect ratio is 1.
        min_keep: a block must show strictly more patches than this.
        allow_overlap: whether a context may show what a target hides.
    """

    grid: int
    targets: int = 4
    contexts: int = 1
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_keep: int = 10
    allow_overlap: bool = False

    def __call__(self, samples: Sequence[Views], step: int) -> Views:
        """``extra`` gains patch indices: ``context_0`` ... [B, Ke] and ``target_0`` ... [B, Kp], int64."""
        joined = collate(samples, step)
        contexts, targets = self.draw(len(samples), step)
        extra = {f"context_{i}": mask for i, mask in enumerate(contexts)}
        extra |= {f"target_{i}": mask for i, mask in enumerate(targets)}
        return Views(joined.images, {**joined.extra, **extra})

    def draw(self, batch: int, step: int) -> tuple[list[Tensor], list[Tensor]]:
        """Context and target indices of a batch, each a list of int64 [batch, kept].

        Raises:
            ValueError: a block of this step cannot show more than ``min_keep`` patches.
        """
        target, context = self.sizes(step)
        for kind, (height, width) in (("target", target), ("context", context)):
            if height * width <= self.min_keep:
                raise ValueError(
                    f"a {kind} block of {height} x {width} patches on a {self.grid} x {self.grid} grid "
                    f"never shows more than min_keep={self.min_keep}: lower min_keep or use larger images"
                )
        target_masks, context_masks = [], []
        for _ in range(batch):
            placed = [self._place(target, []) for _ in range(self.targets)]
            shown = [] if self.allow_overlap else [outside for _, outside in placed]
            target_masks.append([inside for inside, _ in placed])
            context_masks.append([self._place(context, shown)[0] for _ in range(self.contexts)])
        return _cut(context_masks), _cut(target_masks)

    def sizes(self, step: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) in patches of the targets and of the contexts at a step."""
        generator = torch.Generator().manual_seed(step)
        target = self._size(generator, self.target_scale, self.target_aspect)
        return target, self._size(generator, self.context_scale, (1.0, 1.0))

    def _size(
        self, generator: torch.Generator, scale: tuple[float, float], aspect: tuple[float, float]
    ) -> tuple[int, int]:
        share = torch.rand(1, generator=generator).item()  # one draw for both, as released
        area = int(self.grid**2 * (scale[0] + share * (scale[1] - scale[0])))
        ratio = aspect[0] + share * (aspect[1] - aspect[0])
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(height, self.grid - 1), min(width, self.grid - 1)

    def _place(self, size: tuple[int, int], allowed: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Patch indices shown by a block put at random within all ``allowed`` [grid, grid], and its outside.

        After every ``_TIMEOUT`` failures the last of ``allowed`` is given up.
        """
        height, width = size
        tries = 0
        while True:
            top = int(torch.randint(0, self.grid - height, (1,)))
            left = int(torch.randint(0, self.grid - width, (1,)))
            block = torch.zeros(self.grid, self.grid, dtype=torch.int32)
            block[top : top + height, left : left + width] = 1
            outside = 1 - block
            for region in allowed[: max(len(allowed) - tries // _TIMEOUT, 0)]:
                block = block * region
            shown = block.flatten().nonzero().flatten()
            if len(shown) > self.min_keep:
                return shown, outside
            tries += 1


def _cut(masks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Index lists by image and block -> one [B, shortest] tensor per block, first indices kept."""
    shortest = min(len(mask) for image in masks for mask in image)
    return [torch.stack([mask[:shortest] for mask in block]) for block in zip(*masks, strict=True)]
