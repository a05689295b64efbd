"""Memory that a process no longer uses, given back to a machine that trains."""

import ctypes
import gc


def release() -> None:
    """Return what was freed to the system; nothing happens where the C library is not glibc.

    Reading a long ledger and writing its event data leave tens of megabytes behind, which the allocator would
    keep for as long as the watcher lives.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
