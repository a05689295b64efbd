"""Waiting checkpoints protected from rotation: another name for each, in `aside`, until it was evaluated."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote

from dse_monitor import atomic
from dse_monitor.runs import identity
from dse_monitor.runs.identity import Stamp

FOLDER = "aside"  # below the output folder
COPY_BYTES = 20 << 30  # largest file that is copied where hard links are refused; chosen by us


class Protected:
    """At most ``count`` checkpoints of one run, in its output folder; 0 protects none.

    Hard links cost nothing; where the filesystem refuses them (another disk, a folder) files are copied.
    """

    def __init__(self, run: Path, out: Path, count: int):
        self._run, self._folder, self._count = run, out / FOLDER, count
        self._protected: set[str] = set()
        with contextlib.suppress(OSError):
            self._protected = {unquote(name) for name in os.listdir(self._folder) if not name.startswith(".")}

    def waiting(self) -> list[tuple[str, Stamp]]:
        """What a former watcher protected and did not evaluate any more."""
        found = []
        for path in sorted(self._protected):
            with contextlib.suppress(OSError):
                found.append((path, identity.stamp(self._place(path))))
        return found

    def has(self, path: str) -> bool:
        """Whether a checkpoint is protected."""
        return path in self._protected

    def resolve(self, path: str) -> Path:
        """Where to read a checkpoint: under its own name, or here when that is gone."""
        original = self._run / path
        return self._place(path) if path in self._protected and not original.exists() else original

    def protect(self, waiting: Iterable[tuple[str, Stamp]]) -> None:
        """Protect the first of the waiting checkpoints, and let go of those that wait no more."""
        if not self._count:
            return
        chosen = dict(itertools.islice(waiting, self._count))
        for path in self._protected - chosen.keys():
            if (self._run / path).exists():
                self.release(path)
        for path, stamp in chosen.items():
            if path not in self._protected and len(self._protected) < self._count:
                self._add(path, stamp)

    def release(self, path: str) -> None:
        """It was evaluated, or need not be."""
        if path in self._protected:
            self._protected.discard(path)
            atomic.remove(self._place(path))

    def _add(self, path: str, stamp: Stamp) -> None:
        source, target = self._run / path, self._place(path)
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(target) as draft:
                if source.is_dir():
                    shutil.copytree(source, draft, copy_function=_link_or_copy)
                elif stamp.size <= COPY_BYTES or os.stat(source).st_dev == os.stat(self._folder).st_dev:
                    _link_or_copy(str(source.resolve()), str(draft))
                else:
                    return
            self._protected.add(path)

    def _place(self, path: str) -> Path:
        return self._folder / quote(path, safe="")


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
