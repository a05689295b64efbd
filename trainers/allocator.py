"""Memory on CPUs: what one step frees the next one needs again, so the process keeps it."""

from __future__ import annotations

import ctypes
import os
import sys

# parameters of mallopt, glibc's malloc.h
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_CHOSEN_OUTSIDE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def use_huge_pages() -> None:
    """Ask for pages of 2 MiB under PyTorch's larger tensors, where the kernel gives them on request.

    A twelfth of a convolutional step, by fewer translations of addresses (docs/numbers.md). PyTorch reads its
    variable at the first large tensor on a CPU, so call this before; a value set outside is kept.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to give no freed memory back to the kernel, from now on and in the whole process.

    PyTorch caches memory on GPUs but not on CPUs, and glibc returns large blocks when they are freed. Every
    step then gets its activations and gradients as new pages, which the kernel clears one by one: measured,
    tens of thousands of page faults and a tenth to a third of a step (docs/numbers.md). A training process
    needs its peak memory again within a step, so nothing is lost by holding it. No number changes.

    Returns:
        Whether anything was set; not where another C library is in use, nor where the environment already
        tunes malloc (``MALLOC_*_``, ``GLIBC_TUNABLES``).
    """
    if sys.platform != "linux" or any(name in os.environ for name in _CHOSEN_OUTSIDE):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # -1: never trim the heap; 0: serve large blocks from the heap too, of which mappings are no part
    return bool(mallopt(_TRIM_THRESHOLD, -1)) and bool(mallopt(_MMAP_MAX, 0))
