"""Memory on CPUs: large tensors in large pages, so that a step that allocates anew costs few page faults.

Freed memory goes back to the kernel as glibc sees fit. Telling its malloc to keep it saves the other faults
too, but glibc 2.36 was seen to pass over the hole that an aligned block of the same size had left: the heap
grew with every step.
"""

from __future__ import annotations

import os


def use_huge_pages() -> None:
    """Ask for pages of 2 MiB under PyTorch's larger tensors, where the kernel gives them on request.

    A twelfth of a convolutional step, by fewer translations of addresses (docs/numbers.md). PyTorch reads its
    variable at the first large tensor on a CPU, so call this before; a value set outside is kept.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
