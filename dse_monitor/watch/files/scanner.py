"""Folder -> files that may be checkpoints. Our own rescan is the truth; events only make it come early.

Watching events alone misses checkpoints: network disks send none, watch limits drop sub-folders silently,
queues overflow. A rescan costs little because names are judged before anything is looked at, and files
already known are only looked at again now and then.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dse_monitor.runs import identity
from dse_monitor.runs.identity import Stamp, is_checkpoint_folder, stamp_from_stat

DEPTH = 4  # folders below the run that are searched; chosen by us
ENTRY_LIMIT = 50_000  # directory entries looked at per scan; chosen by us, about 0.1 s


@dataclass(frozen=True)
class Scan:
    """What changed since the last scan.

    Attributes:
        state: ``ok``; ``missing`` (the run's folder is not there); ``unreachable`` (it cannot be read now,
            nothing is concluded from that).
        changed: new candidates and those with a new version, by path relative to the run.
        vanished: candidates that are gone.
        replaced: the run's folder is another one than before, under the same name.
        truncated: there were more entries than are looked at.
        reason: why the folder is unreachable.
    """

    state: str = "ok"
    changed: dict[str, Stamp] = field(default_factory=dict)
    vanished: tuple[str, ...] = ()
    replaced: bool = False
    truncated: bool = False
    reason: str = ""


@dataclass
class _Walk:
    """One scan in progress."""

    deep: bool
    entries: int = 0
    truncated: bool = False
    present: set[str] = field(default_factory=set)
    changed: dict[str, Stamp] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # folders that could not be listed
    visited: set[tuple[int, int]] = field(default_factory=set)


class Scanner:
    """Finds candidates below ``root`` and remembers which version of each it has reported.

    Args:
        root: the run's folder; need not exist yet.
        is_candidate: judges a path relative to the run, with forward slashes.
        is_rolling: judges a name that is written over and over; those are looked at in every scan.
        skip: folder that is never entered (our own output).
        entry_limit: directory entries looked at per scan.
    """

    def __init__(
        self,
        root: Path,
        is_candidate: Callable[[str], bool],
        is_rolling: Callable[[str], bool] = lambda name: False,
        *,
        skip: Path | None = None,
        entry_limit: int = ENTRY_LIMIT,
    ):
        self.root = root
        self._is_candidate = is_candidate
        self._is_rolling = is_rolling
        self._skip = os.path.abspath(skip) if skip is not None else None
        self._limit = entry_limit
        # path -> row; of each row the inode in the listing, the hash of the stamp, whether the name rolls
        self._known: dict[str, int] = {}
        self._inodes, self._states, self._rolls = array("Q"), array("q"), array("b")
        self._free: list[int] = []
        self._ignored: set[str] = set()
        self._identity: tuple[int, int] | None = None

    @property
    def count(self) -> int:
        """Candidates present at the last scan."""
        return len(self._known)

    def scan(self, *, deep: bool = True) -> Scan:
        """Look for changes. A scan that is not ``deep`` looks only at new, rolling and replaced files.

        A file rewritten in place under a name that does not roll is noticed by the next deep scan.
        """
        try:
            root = os.stat(self.root)
            os.scandir(self.root).close()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return Scan(state="missing", vanished=self._forget(list(self._known)))
            return Scan(state="unreachable", reason=error.strerror or str(error))
        replaced = self._identity is not None and self._identity != (root.st_dev, root.st_ino)
        self._identity = (root.st_dev, root.st_ino)
        if replaced:
            self._forget(list(self._known))
            self._ignored.clear()
        walk = _Walk(deep=deep)
        walk.visited.add(self._identity)
        self._enter(os.fspath(self.root), "", 0, walk)
        return Scan(
            changed=walk.changed,
            vanished=() if walk.truncated else self._forget(self._gone(walk)),
            replaced=replaced,
            truncated=walk.truncated,
        )

    def has(self, path: str) -> bool:
        """Whether a candidate was there at the last scan."""
        return path in self._known

    def missed(self, path: str) -> None:
        """Report this candidate again at the next scan (its last report came to nothing)."""
        if path in self._known:
            self._free.append(self._known.pop(path))

    def _gone(self, walk: _Walk) -> list[str]:
        missing = self._known.keys() - walk.present
        return [path for path in missing if not any(path.startswith(folder) for folder in walk.unread)]

    def _forget(self, paths: list[str]) -> tuple[str, ...]:
        for path in paths:
            self._free.append(self._known.pop(path))
        return tuple(sorted(paths))

    def _enter(self, folder: str, relative: str, depth: int, walk: _Walk) -> None:
        try:
            with os.scandir(folder) as listing:
                entries = list(listing) if depth else listing  # what lies in a folder says what it is
                if depth and is_checkpoint_folder([entry.name for entry in entries]):
                    self._take_folder(folder, relative.rstrip("/"), walk)
                    return
                links: list[os.DirEntry[str]] = []
                for entry in entries:
                    if entry.is_symlink():
                        links.append(entry)  # real names before links to them
                    elif not self._look(entry, relative, depth, walk):
                        return
                for entry in links:
                    if not self._look(entry, relative, depth, walk):
                        return
        except FileNotFoundError:
            return
        except OSError:
            walk.unread.append(relative)

    def _look(self, entry: os.DirEntry[str], relative: str, depth: int, walk: _Walk) -> bool:
        """Take in one entry of a folder; False once there were too many."""
        walk.entries += 1
        if walk.entries > self._limit:
            walk.truncated = True
            return False
        path = relative + entry.name
        if path in self._known:
            self._take(entry, path, walk)
        elif path in self._ignored:
            pass
        elif _is_folder(entry) and not self._is_candidate(path):
            if depth < DEPTH and not entry.name.startswith(".") and not self._is_output(entry.path):
                if _is_new(entry, walk):
                    self._enter(entry.path, path + "/", depth + 1, walk)
        elif self._is_candidate(path):
            self._take(entry, path, walk)
        else:
            self._ignored.add(path)
            if len(self._ignored) > 2 * self._limit:  # a folder of short-lived files must not fill memory
                self._ignored.clear()
        return True

    def _is_output(self, path: str) -> bool:
        return self._skip is not None and os.path.abspath(path) == self._skip

    def _take(self, entry: os.DirEntry[str], path: str, walk: _Walk) -> None:
        row = self._known.get(path)
        inode = entry.inode()
        if (
            row is not None
            and not walk.deep
            and self._inodes[row] == inode
            and not self._rolls[row]
            and not entry.is_symlink()
        ):
            walk.present.add(path)
            return
        try:
            found = os.stat(entry.path)
            stamp = identity.stamp(Path(entry.path)) if _is_folder(entry) else stamp_from_stat(found)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP) and row is not None:
                walk.present.add(path)  # it cannot be looked at now, which does not mean that it is gone
            return
        self._report(path, inode, stamp, walk)

    def _take_folder(self, folder: str, path: str, walk: _Walk) -> None:
        try:
            stamp = identity.stamp(Path(folder))
        except OSError:
            if path in self._known:
                walk.present.add(path)
            return
        self._report(path, stamp.inode, stamp, walk)

    def _report(self, path: str, inode: int, stamp: Stamp, walk: _Walk) -> None:
        walk.present.add(path)
        row, state = self._known.get(path), hash(stamp)
        if row is None:
            row = self._known[path] = self._new_row()
            self._rolls[row] = self._is_rolling(path)
        elif (self._inodes[row], self._states[row]) == (inode, state):
            return
        self._inodes[row], self._states[row] = inode, state
        walk.changed[path] = stamp

    def _new_row(self) -> int:
        if self._free:
            return self._free.pop()
        for column in (self._inodes, self._states, self._rolls):
            column.append(0)
        return len(self._inodes) - 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_new(entry: os.DirEntry[str], walk: _Walk) -> bool:
    """Whether this folder was not entered yet in this scan; a link to an ancestor would never end."""
    try:
        found = os.stat(entry.path)
    except OSError:
        return False
    key = (found.st_dev, found.st_ino)
    if key in walk.visited:
        return False
    walk.visited.add(key)
    return True
