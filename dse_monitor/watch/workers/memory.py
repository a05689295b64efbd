"""Memory that a process no longer uses, given back to a machine that trains. With glibc alone."""

import contextlib
import ctypes
import gc

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc, malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
SPARE_BYTES = 2 << 20  # kept at the end of the heap: what alerts take to judge ten thousand checkpoints


def keep_spare() -> None:
    """Let the allocator keep a little spare memory rather than return it and ask again at each checkpoint.

    At the usual 128 kB, the columns of a long run made 500 page faults per look at them, half of its time.
    """
    with contextlib.suppress(AttributeError, OSError):
        for threshold in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(threshold, SPARE_BYTES)


def release() -> None:
    """Return what was freed to the system.

    Reading a long ledger and writing its event data leave tens of megabytes behind, which the allocator would
    keep for as long as the watcher lives.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
