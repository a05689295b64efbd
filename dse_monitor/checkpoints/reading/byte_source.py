"""Reading somebody else's file by position, and noticing when it changes meanwhile.

No mapping and no handle kept: a trainer may delete, truncate or replace the file at any moment, and a mapped
file that shrinks kills the process, while a short read is an error that can be handled.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dse_monitor.errors import CheckpointError, CorruptCheckpoint, IncompleteCheckpoint

_STEP = 1 << 24  # bytes per system call; ours: short enough to notice a truncation early


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one state of a file from another: device, inode, bytes, and both times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Taken from a stat."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class ByteSource:
    """A regular file as it was at the first look; every later look must see the same one.

    Attributes:
        path: the file.
        size: its bytes.
        identity: what it looked like.
        checksummed: set by a container whose checksums vouch for what is read; then a change of ctime alone
            (a new hard link, other permissions) is none.

    Raises:
        IncompleteCheckpoint: the file is not there or cannot be read now; the OSError is the cause.
        CheckpointError: it is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.checksummed = False
        self.identity: Identity | None = None
        with self.open():
            pass
        assert self.identity is not None
        self.size = self.identity.size

    @contextmanager
    def open(self) -> Iterator[int]:
        """A read-only descriptor for a moment; the file is compared with the first look before and after."""
        try:
            # Opening a named pipe would wait for a writer without O_NONBLOCK; regular files ignore it.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise IncompleteCheckpoint(f"{self.path} cannot be read: {error.strerror or error}") from error
        try:
            self._compare(os.fstat(descriptor))
            yield descriptor
            self._compare(os.fstat(descriptor))
        except OSError as error:
            raise IncompleteCheckpoint(f"{self.path} cannot be read: {error.strerror or error}") from error
        finally:
            os.close(descriptor)

    def _compare(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(
                f"{self.path} is no regular file but {_kind(status)}; give a checkpoint file"
            )
        now = Identity.of(status)
        if self.identity is None:
            self.identity = now
        elif self.checksummed and now == replace(self.identity, ctime_ns=now.ctime_ns):
            self.identity = now
        elif now != self.identity:
            raise CorruptCheckpoint(
                f"{self.path} changed while it was read (then {self.identity.size} bytes, now {now.size}); "
                "read it again once its writer has finished"
            )

    def verify_unchanged(self) -> bool:
        """Compare the path with the first look again; False when it is gone (what was read stays good)."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise IncompleteCheckpoint(
                f"{self.path} cannot be looked at: {error.strerror or error}"
            ) from error
        self._compare(status)
        return True

    def read(self, offset: int, length: int) -> bytes:
        """Bytes at a position, through a descriptor of their own."""
        with self.open() as descriptor:
            return read_at(descriptor, self, offset, length)


@dataclass(slots=True, eq=False)
class Record:
    """A run of bytes in a file that belongs together.

    Attributes:
        source: the file.
        name: what the file calls it, for messages.
        offset: where it starts; for a zip member the start of its local header.
        nbytes: its length.
        crc: expected CRC-32, or None when the file has none that can be trusted.
        member: True when ``offset`` points at the local header of a zip member.
        limit: position its bytes may not pass (start of the next member or of the directory).
        packed: bytes in the file when the member is deflated; None when stored.
    """

    source: ByteSource
    name: str
    offset: int
    nbytes: int
    crc: int | None = None
    member: bool = False
    limit: int = 0
    packed: int | None = None

    def fail(self, found: str) -> CorruptCheckpoint:
        """The error for this record, to be raised."""
        return CorruptCheckpoint(
            f"{self.source.path}: record {self.name!r} {found}; copy or save the checkpoint again"
        )


def read_at(descriptor: int, source: ByteSource, offset: int, length: int) -> bytes:
    """Exactly ``length`` bytes at ``offset``."""
    data = os.pread(descriptor, length, offset)
    if len(data) == length:
        return data
    buffer = bytearray(length)  # the system may give less at a time
    buffer[: len(data)] = data
    read_into(descriptor, source, offset + len(data), memoryview(buffer)[len(data) :])
    return bytes(buffer)


def read_into(descriptor: int, source: ByteSource, offset: int, target: memoryview) -> None:
    """Fill ``target`` from ``offset``; a file that ends early raises IncompleteCheckpoint."""
    done = 0
    while done < len(target):
        got = os.preadv(descriptor, [target[done : done + _STEP]], offset + done)
        if got == 0:
            raise IncompleteCheckpoint(
                f"{source.path} ends at byte {offset + done}, inside data that should reach byte "
                f"{offset + len(target)}; it is cut short or still being written"
            )
        done += got


def _kind(status: os.stat_result) -> str:
    for name, test in {"folder": stat.S_ISDIR, "named pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}.items():
        if test(status.st_mode):
            return f"a {name}"
    return "a device"
