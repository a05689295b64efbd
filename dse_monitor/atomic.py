"""The one way to write a file here: under a draft's name first, then in place of what was there.

A reader, or a crash at any moment, finds the old file or the new one, never a part of either.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

PART = ".part"  # ending of drafts; a process that is killed leaves one behind


@contextlib.contextmanager
def replacing(target: Path, name: str = "") -> Iterator[Path]:
    """A path for a file, link or folder; what lies there at the end takes the place of ``target``.

    Nothing is replaced when the block raises or leaves nothing there, and no draft stays.

    Args:
        target: what is replaced or made; its folder exists.
        name: of the draft, where other programs would take one like the target's for the real thing.

    Raises:
        OSError: ``target`` cannot be replaced (a folder by a file, or a folder that is not empty).
    """
    draft = target.with_name(f".{name or target.name}.{os.getpid()}{PART}")
    remove(draft)
    try:
        yield draft
        with contextlib.suppress(FileNotFoundError):
            os.replace(draft, target)
    finally:
        remove(draft)


def write_bytes(target: Path, content: bytes) -> None:
    """Replace a file; what a crash of the machine leaves is the filesystem's affair.

    Raises:
        OSError: it cannot be written; the old one is untouched.
    """
    with replacing(target) as draft:
        draft.write_bytes(content)


def write_text(target: Path, text: str) -> None:
    """Replace a small file, in UTF-8; it is on the disk before it has its name.

    Raises:
        OSError: it cannot be written; the old one is untouched.
    """
    with replacing(target) as draft, draft.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def link(target: Path, to: str) -> None:
    """Replace a symbolic link.

    Args:
        target: the link.
        to: what it leads to, as the link spells it.

    Raises:
        OSError: it cannot be made; the old one is untouched.
    """
    with replacing(target) as draft:
        draft.symlink_to(to)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
