"""Whether a file may be a checkpoint by its first bytes alone, for files whose names do not say it."""

from __future__ import annotations

import os
import stat

from dse_monitor.checkpoints.formats.safetensors_file import looks_like_safetensors
from dse_monitor.checkpoints.formats.torch_legacy import is_legacy
from dse_monitor.checkpoints.reading.zip_directory import LOCAL

HEAD = 256  # bytes that are read
# The first members of a torch zip, below a folder of any name; other zips begin with members of other names.
_MEMBERS = (b"/data.pkl", b"/version", b"/byteorder", b"/.format_version", b"/constants.pkl", b"/code/")


def holds_weights(path: str) -> bool:
    """Whether a regular file begins as torch or safetensors write it; False for what cannot be read now.

    Plain pickles, archives and other files are none; pipes and devices are not opened for long.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        head = os.pread(descriptor, HEAD, 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    if head[:4] == LOCAL:
        return any(name in head for name in _MEMBERS)
    return looks_like_safetensors(head[:64]) or is_legacy(head[:64])
