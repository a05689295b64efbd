"""Tensors of one number, read without torch: step counters of optimisers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dse_monitor.checkpoints.archive import Archive
    from dse_monitor.checkpoints.reading.contents import TensorRef

_FORMATS = {"float32": "f", "float64": "d", "int32": "i", "int64": "q"}  # those that count steps


def read_scalars(archive: Archive, refs: Sequence[TensorRef]) -> list[float]:
    """The values of float32, float64, int32 or int64 tensors that hold one number each."""
    blobs = archive.read(list(refs))
    return [struct.unpack(_FORMATS[ref.dtype], blob)[0] for ref, blob in zip(refs, blobs, strict=True)]
