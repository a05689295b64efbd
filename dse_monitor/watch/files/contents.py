"""Files whose names do not say that they are checkpoints, told by their first bytes: any suffix, or none."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

LEAST_BYTES = 1 << 16  # smaller files hold no encoder that anybody would measure; chosen by us
REMEMBERED = 20_000  # files whose first bytes are remembered; chosen by us, about 4 MB
AT_ONCE = 2000  # files whose first bytes are read between two calls of `begin`; chosen by us, about 0.1 s


class Contents:
    """Judges files by their first bytes, each version once.

    Args:
        may_hold: whether a path below the run may be a checkpoint at all.
        holds_weights: reads the first bytes of a file.
    """

    def __init__(self, may_hold: Callable[[str], bool], holds_weights: Callable[[str], bool]):
        self._may_hold, self._holds_weights = may_hold, holds_weights
        self._judged: dict[str, tuple[int, bool]] = {}
        self._left = AT_ONCE

    def begin(self) -> None:
        """A new search begins."""
        self._left = AT_ONCE

    @property
    def exhausted(self) -> bool:
        """Whether more files were to be judged than one search may."""
        return self._left < 0

    def __call__(self, relative: str, entry: os.DirEntry[str]) -> bool:
        """Whether a file holds weights.

        Args:
            relative: its path below the run.
            entry: the file.
        """
        if not self._may_hold(relative):
            return False
        try:
            found = entry.stat()
        except OSError:
            return False  # a link that leads nowhere, a disk that does not answer: judged again next time
        if not stat.S_ISREG(found.st_mode) or found.st_size < LEAST_BYTES:
            return False
        version = hash((found.st_ino, found.st_size, found.st_mtime_ns))
        known = self._judged.get(entry.path)
        if known is not None and known[0] == version:
            return known[1]
        self._left -= 1
        if self._left < 0:
            return False
        verdict = self._holds_weights(entry.path)
        if len(self._judged) >= REMEMBERED:
            self._judged.clear()
        self._judged[entry.path] = (version, verdict)
        return verdict
