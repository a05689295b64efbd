"""Which file is this, and is it still the same one? Trainers overwrite, link, copy and rotate.

Three keys, from cheap to certain: the :class:`Stamp` (one fstat), the :func:`content_key` (a zip's directory
of checksums, a few milliseconds) and the digest of the encoder's bytes that an evaluation brings back.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DIRECTORY_LIMIT = 100_000  # entries of a zip's directory we are willing to read; real files have up to 4,000
SHARD_SUFFIX = ".distcp"  # torch.distributed.checkpoint: one folder is one checkpoint
FOLDER_MARKER = ".metadata"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the filesystem says about a file's version. Equal stamps mean equal bytes.

    The device number is left out: it changes when a network disk is mounted again.

    Attributes:
        inode: inode number.
        size: bytes.
        mtime_ns: last change of the content, nanoseconds.
        ctime_ns: last change of content or inode (links, mode, times), nanoseconds; cannot be set back.
        links: hard links to the inode.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    links: int = 1

    def same_version(self, other: Stamp) -> bool:
        """Whether both describe the same bytes; a hard link made or removed in between changes nothing."""
        same = (self.inode, self.size, self.mtime_ns) == (other.inode, other.size, other.mtime_ns)
        return same and (self.ctime_ns == other.ctime_ns or self.links != other.links)

    def to_list(self) -> list[int]:
        """The stamp in a ledger."""
        return [self.inode, self.size, self.mtime_ns, self.ctime_ns, self.links]

    @classmethod
    def from_list(cls, values: list[int]) -> Stamp:
        """The inverse of :meth:`to_list`."""
        return cls(*(int(value) for value in values))


def is_checkpoint_folder(names: list[str]) -> bool:
    """Whether a folder with these entries is one checkpoint in many files (torch.distributed.checkpoint)."""
    return FOLDER_MARKER in names or any(name.endswith(SHARD_SUFFIX) for name in names)


def stamp_from_stat(found: os.stat_result) -> Stamp:
    """The stamp in a stat result."""
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink)


def stamp(path: Path) -> Stamp:
    """Stamp a checkpoint without opening it. A folder's stamp covers all files in it.

    Raises:
        OSError: it cannot be looked at.
    """
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        return stamp_from_stat(found)
    return _of_folder(path, found, os.stat)


def look(path: Path) -> Stamp:
    """Stamp a checkpoint through open and fstat: network filesystems ask the server only then (nfs(5)).

    Raises:
        OSError: it cannot be opened.
    """
    found = _fstat(path)
    if not stat.S_ISDIR(found.st_mode):
        return stamp_from_stat(found)
    return _of_folder(path, found, _fstat)


def _fstat(path: str | Path) -> os.stat_result:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe must not block us
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _of_folder(path: Path, found: os.stat_result, examine: Callable[[str], os.stat_result]) -> Stamp:
    size, mtime, ctime = 0, found.st_mtime_ns, found.st_ctime_ns
    for folder, _, names in os.walk(path):
        for name in names:
            inside = examine(os.path.join(folder, name))
            size += inside.st_size
            mtime, ctime = max(mtime, inside.st_mtime_ns), max(ctime, inside.st_ctime_ns)
    return Stamp(found.st_ino, size, mtime, ctime, 1)


def content_key(path: Path) -> str | None:
    """A key equal for files with equal content, from a zip's directory; None where there is none.

    The directory holds a CRC-32 and a size per tensor. With checksums switched off when saving, two different
    checkpoints of one model have the same directory, so the checksum of a small member is verified first.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None  # a device has no end
            archive = zipfile.ZipFile(file)
            members = archive.infolist()
            if len(members) > DIRECTORY_LIMIT or not _checksums_are_real(archive, members):
                return None
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, RuntimeError):
        return None
    digest = hashlib.sha256()
    for member in sorted(members, key=lambda member: member.filename):
        name = member.filename.partition("/")[2] or member.filename  # the top folder is the file's own name
        digest.update(f"{name}\0{member.file_size}\0{member.CRC}\n".encode())
    return digest.hexdigest()[:32]


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe must not block us


def _checksums_are_real(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> bool:
    for member in members:
        if member.filename.endswith(("/version", "/byteorder")) and member.file_size <= 64:
            archive.read(member)  # raises BadZipFile when the checksum is wrong
            return True
    return False
