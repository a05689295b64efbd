"""Work split into pieces: the one place that trades temporary memory, kernel size and threads for each other.

On a CPU the pieces are small enough for a core's cache and run on as many threads as torch would use, each of
them computing alone: many small decompositions and products gain nothing from threads inside, and on a busy
machine those threads wait for each other at every step. On an accelerator the pieces are large and run in
turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")

CPU_BYTES = (
    3 * 2**20
)  # one group of 8 x 196 tokens of width 384 in float32; ours, measured by benchmarks/metric.py
ACCELERATOR_BYTES = 512 * 2**20  # ours: enough work for one kernel, little beside the features


def chunks(count: int, item_bytes: int, device: torch.device, together: int = 1) -> Iterator[slice]:
    """Slices that cover ``range(count)``, each of items that together take about ``together`` pieces' bytes.

    On an accelerator, where pieces are large, ``together`` changes nothing; on a CPU it leaves a piece for
    every thread.
    """
    budget = CPU_BYTES if device.type == "cpu" else ACCELERATOR_BYTES
    step = max(1, budget // max(item_bytes, 1))
    if device.type == "cpu":
        step = max(step, min(step * together, -(-count // torch.get_num_threads())))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def run(work: Callable[[Piece], object], pieces: Iterable[Piece], device: torch.device) -> None:
    """Call ``work`` on every piece; in threads on the CPU, so pieces must write to different places.

    ``work`` starts without gradients, for gradient mode belongs to a thread. Torch's thread count is
    restored.
    """
    pieces = list(pieces)
    threads = min(torch.get_num_threads(), len(pieces)) if device.type == "cpu" else 1
    if threads < 2:
        with torch.no_grad():
            for piece in pieces:
                work(piece)
        return

    def alone(piece: Piece) -> None:
        torch.set_num_threads(1)  # of this thread: both OpenMP and MKL keep the number per thread
        with torch.no_grad():
            work(piece)

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="dse") as pool:
            for _ in pool.map(alone, pieces):
                pass
    finally:
        torch.set_num_threads(before)
