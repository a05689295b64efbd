"""Event files as a sequence of frames: length, payload, and a checksum of each, as TFRecord has them.

tensorboard's own RecordWriter does the same, but brings 15 MB of modules into a process that lives beside a
training for weeks, and works its checksums out in Python.
"""

# pyright: reportAttributeAccessIssue=false
# (tensorboard's generated protocol modules make their classes at run time)

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

_MASK_DELTA = 0xA282EAD8  # TFRecord keeps rotated checksums, as those of checksums are weak


def frame(payload: bytes) -> bytes:
    """A payload as it stands in an event file."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, _checksum(length), payload, _checksum(payload)))


def events(path: Path) -> Iterator[Event]:
    """The whole events of a file, up to the first that is torn; checksums are not looked at."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while len(header := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", header[:8])
            if file.tell() + length + 4 > size:
                return
            body = file.read(length + 4)
            try:
                yield Event.FromString(body[:length])
            except DecodeError:
                return


def _checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF)
