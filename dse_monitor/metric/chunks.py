"""How much to work on at once: the one place that trades temporary memory against fewer, larger kernels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

CPU_BYTES = (
    32 * 2**20
)  # temporary copies stay about as large as a last-level cache; ours, see benchmarks/metric.py
ACCELERATOR_BYTES = 512 * 2**20  # enough to fill an accelerator with work; ours


def chunks(count: int, item_bytes: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover ``range(count)``, each for items of ``item_bytes`` bytes that fit into working memory."""
    budget = CPU_BYTES if device.type == "cpu" else ACCELERATOR_BYTES
    step = max(1, budget // max(item_bytes, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
