"""Folder -> files that may be checkpoints. Our own rescan is the truth; events only make it come early.

Watching events alone misses checkpoints: network disks send none, watch limits drop sub-folders silently,
queues overflow. A rescan costs little because names are judged before anything is looked at, and files
already known are only looked at again now and then. What is no checkpoint now is judged anew in each scan: a
link may begin to lead somewhere, a disk may answer again.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dse_monitor.runs import identity
from dse_monitor.runs.identity import Stamp, stamp_from_stat
from dse_monitor.watch.files import walk
from dse_monitor.watch.files.walk import ENTRY_LIMIT, Head, Joining, Walk

PENDING = 1000  # files of a folder that are kept until it is known whose they are; chosen by us


@dataclass(frozen=True)
class Scan:
    """What changed since the last scan.

    Attributes:
        state: ``ok``; ``missing`` (the run's folder is not there); ``unreachable`` (it cannot be read now,
            nothing is concluded from that).
        changed: new candidates and those with a new version, by path relative to the run.
        vanished: candidates that are gone.
        replaced: the run's folder is another one than before, under the same name.
        unlooked: what was not looked at, in words: there were more entries than are looked at, or a folder
            that cannot be read; empty if there is nothing.
        reason: why the folder is unreachable.
    """

    state: str = "ok"
    changed: dict[str, Stamp] = field(default_factory=dict)
    vanished: tuple[str, ...] = ()
    replaced: bool = False
    unlooked: str = ""
    reason: str = ""


@dataclass
class _Found:
    """One scan in progress."""

    deep: bool
    present: set[str] = field(default_factory=set)
    changed: dict[str, Stamp] = field(default_factory=dict)


class Scanner:
    """Finds candidates below ``root`` and remembers which version of each it has reported.

    Args:
        root: the run's folder; need not exist yet.
        is_candidate: judges a path relative to the run, with forward slashes.
        is_rolling: judges a name that is written over and over; those are looked at in every scan.
        holds_weights: judges a file of no telling name by its first bytes.
        tells_count: whether a path tells an epoch, a step or another count.
        joining: how the folders below belong together; see walk.py.
        skip: folder that is never entered (our own output).
        elsewhere: whether the real path of a link's target belongs to another run.
        entry_limit: directory entries looked at per scan.

    Attributes:
        identity: device and inode of the folder at the last scan that could read it.
        others: folders below that are runs of their own, as the last scan found them.
    """

    def __init__(
        self,
        root: Path,
        is_candidate: Callable[[str], bool],
        is_rolling: Callable[[str], bool] = lambda name: False,
        *,
        holds_weights: Callable[[str, os.DirEntry[str]], bool] = lambda path, entry: False,
        tells_count: Callable[[str], bool] = lambda path: False,
        joining: Joining = "one",
        skip: Path | None = None,
        elsewhere: Callable[[str], bool] = lambda path: False,
        entry_limit: int = ENTRY_LIMIT,
    ):
        self.root = root
        self.others: frozenset[str] = frozenset()
        self._is_candidate, self._is_rolling = is_candidate, is_rolling
        self._holds_weights, self._tells_count = holds_weights, tells_count
        self._joining: Joining = joining
        self._skip = frozenset() if skip is None else frozenset({os.path.abspath(skip)})
        self._elsewhere = elsewhere
        self._limit = entry_limit
        # path -> row; of each row the inode in the listing, the hash of the stamp, whether the name rolls
        self._known: dict[str, int] = {}
        self._inodes, self._states, self._rolls = array("Q"), array("q"), array("b")
        self._free: list[int] = []
        self.identity: tuple[int, int] | None = None

    @property
    def count(self) -> int:
        """Candidates present at the last scan."""
        return len(self._known)

    @property
    def paths(self) -> list[str]:
        """The candidates present at the last scan."""
        return list(self._known)

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
        replaced = self.identity is not None and self.identity != (root.st_dev, root.st_ino)
        self.identity = (root.st_dev, root.st_ino)
        if replaced:
            self._forget(list(self._known))
        found, walked = _Found(deep), self._walk()
        self._look(walked, found)
        return Scan(
            changed=found.changed,
            vanished=() if walked.unlooked else self._forget(self._gone(found, walked)),
            replaced=replaced,
            unlooked=walk.in_words(walked.unlooked, walked.unread),
        )

    def has(self, path: str) -> bool:
        """Whether a candidate was there at the last scan."""
        return path in self._known

    def missed(self, path: str) -> None:
        """Report this candidate again at the next scan (its last report came to nothing)."""
        if path in self._known:
            self._free.append(self._known.pop(path))

    def _gone(self, found: _Found, walked: Walk) -> list[str]:
        missing = self._known.keys() - found.present
        return [path for path in missing if not any(path.startswith(folder) for folder in walked.unread)]

    def _forget(self, paths: list[str]) -> tuple[str, ...]:
        for path in paths:
            self._free.append(self._known.pop(path))
        return tuple(sorted(paths))

    def _walk(self) -> Walk:
        return Walk(
            os.fspath(self.root),
            self._is_candidate,
            joining=self._joining,
            skip=self._skip,
            elsewhere=self._elsewhere,
            limit=self._limit,
        )

    def _look(self, walked: Walk, found: _Found) -> None:
        """Take in what belongs to this run; what may belong to another waits until that is known."""
        pending: dict[Head, list[tuple[str, os.DirEntry[str] | None]]] = {}
        for folder in walked:
            if folder.is_checkpoint:
                items = [(folder.relative.rstrip("/"), folder.inside.rstrip("/"), None)]
            else:
                items = ((folder.relative + e.name, folder.inside + e.name, e) for e in folder.files)
            for path, inside, entry in items:
                if entry is None or self._is_one(path, entry):
                    folder.head.add(inside)
                    if folder.head is walked.top:
                        self._take(path, entry, found)
                    elif not folder.head.claim:
                        waiting = pending.setdefault(folder.head, [])
                        waiting += [(path, entry)] if len(waiting) < PENDING else []
        walk.settle(walked.heads, self._tells_count)
        for head, waiting in pending.items():
            for path, entry in waiting if head.run is walked.top else ():
                self._take(path, entry, found)
        self.others = frozenset(head.path for head in walked.heads[1:] if head.run is head and head.count)

    def _is_one(self, path: str, entry: os.DirEntry[str]) -> bool:
        """Whether a file is a candidate: by its name, else by its first bytes."""
        return path in self._known or self._is_candidate(path) or self._holds_weights(path, entry)

    def _take(self, path: str, entry: os.DirEntry[str] | None, found: _Found) -> None:
        """Report a file, or (without an entry) a folder that is one checkpoint, if it is new or changed."""
        row = self._known.get(path)
        try:
            full = entry.path if entry is not None else os.path.join(self.root, path)
            inode = entry.inode() if entry is not None else os.stat(full).st_ino
            known = row is not None and self._inodes[row] == inode and not self._rolls[row]
            if known and not found.deep and (entry is None or not entry.is_symlink()):
                found.present.add(path)
                return
            stamp = identity.stamp(Path(full)) if entry is None else stamp_from_stat(os.stat(full))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP) and row is not None:
                found.present.add(path)  # it cannot be looked at now, which does not mean that it is gone
            return
        self._report(path, inode, stamp, found)

    def _report(self, path: str, inode: int, stamp: Stamp, found: _Found) -> None:
        found.present.add(path)
        row, state = self._known.get(path), hash(stamp)
        if row is None:
            row = self._known[path] = self._new_row()
            self._rolls[row] = self._is_rolling(path)
        elif (self._inodes[row], self._states[row]) == (inode, state):
            return
        self._inodes[row], self._states[row] = inode, state
        found.changed[path] = stamp

    def _new_row(self) -> int:
        if self._free:
            return self._free.pop()
        for column in (self._inodes, self._states, self._rolls):
            column.append(0)
        return len(self._inodes) - 1
