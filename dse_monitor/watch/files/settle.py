"""Is this file whole and still? A checkpoint is evaluated only when both hold.

Whole: the container's own end marker is in place (checkpoints/archive.py). Still: two looks at least `settle`
seconds apart found the same stamp. Age is counted by our own monotonic clock since the last change we saw;
the file's times come from another machine's clock and are never compared with ours.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dse_monitor.runs.identity import Stamp, look

UNMARKED_FACTOR = 3.0  # formats without an end marker must lie still this many times longer; chosen by us
UNKNOWN_SECONDS = 30.0  # s a file of no known format gets before it is handed on to be refused; chosen by us
OVERTAKEN_SECONDS = 60.0  # s for an incomplete file once a newer one is whole; chosen by us
ABANDONED_SECONDS = 1800.0  # s without growth until an incomplete file counts as abandoned; chosen by us
RECHECK_SECONDS = 60.0  # s between tests of a file that does not grow, at most; chosen by us
FORESEEN_SECONDS = 3.0  # s before a whole file is ready, in which a worker loads; chosen by us


class Completeness(Protocol):
    """What a test for completeness says; see checkpoints/archive.py."""

    @property
    def whole(self) -> bool:
        """Whether the file's own structure says that it ends where it should."""
        ...

    @property
    def container(self) -> str:
        """The format; empty when it is none that is known."""
        ...

    @property
    def reason(self) -> str:
        """Why it is not whole."""
        ...

    @property
    def has_end_marker(self) -> bool:
        """Whether the format has an end that can be recognised."""
        ...


@dataclass(frozen=True)
class Settled:
    """A file left the waiting room.

    Attributes:
        path: relative to the run.
        stamp: the version that settled; None when it is gone.
        outcome: ``ready``, ``abandoned`` (incomplete for good) or ``gone``.
        reason: why it counts as abandoned.
        versions: versions seen and passed over while it waited.
    """

    path: str
    stamp: Stamp | None
    outcome: str
    reason: str = ""
    versions: int = 0


@dataclass(slots=True)
class Waiting:
    """A file that is not ready yet.

    Attributes:
        path: relative to the run.
        stamp: its version at the last look.
        since: when it last changed, monotonic seconds.
        due: when it is looked at next.
        grew: whether it changed while we watched.
        tests: tests for completeness of this version.
        versions: versions seen and passed over.
        reason: why it waits, in words.
        hold: extra stillness demanded, seconds (after a torn read).
        foretold: whether it was looked at before its time to see if it is whole.
        ready_at: when it will be ready if it stays as it is, monotonic seconds; never while it is not whole.
    """

    path: str
    stamp: Stamp
    since: float
    due: float
    grew: bool = False
    tests: int = 0
    versions: int = 0
    reason: str = "is being written"
    hold: float = 0.0
    foretold: bool = False
    ready_at: float = math.inf


@dataclass
class Settler:
    """The waiting room of one run.

    Args:
        root: the run's folder.
        settle_seconds: stillness demanded.
        complete: test for completeness of a file.
        impatient: nobody will write any more (``--once``): an incomplete file that does not grow is abandoned
            soon.
        examine: stamps a file through open and fstat.
    """

    root: Path
    settle_seconds: float
    complete: Callable[[Path], Completeness]
    impatient: bool = False
    examine: Callable[[Path], Stamp] = look
    waiting: dict[str, Waiting] = field(default_factory=dict)
    _newest_whole: int = 0
    _one_foreseen: bool = False

    def add(self, path: str, stamp: Stamp, now: float, *, hold: float = 0.0) -> None:
        """A file appeared or changed; ``hold`` seconds of stillness are demanded beyond the usual."""
        known = self.waiting.get(path)
        if known is None:
            # The first to come is looked at right away: it may be whole already.
            due = now + self.settle_seconds / 2 if self.waiting else now
            self.waiting[path] = Waiting(path, stamp, now, due, hold=hold)
        elif not known.stamp.same_version(stamp):
            self._changed(known, stamp, now)

    def touch(self, path: str, now: float) -> bool:
        """Somebody says that a file changed: look at it now. False when it does not wait here."""
        file = self.waiting.get(path)
        if file is not None:
            file.due = min(file.due, now)
        return file is not None

    def discard(self, path: str) -> None:
        """The file is gone."""
        self.waiting.pop(path, None)

    def due(self) -> float | None:
        """When the next look is due, monotonic seconds; None while nothing waits."""
        return min((file.due for file in self.waiting.values()), default=None)

    def foresees(self, now: float) -> bool:
        """Whether a file will be ready within seconds, if it stays as it is."""
        return any(file.ready_at - now <= FORESEEN_SECONDS for file in self.waiting.values())

    def step(self, now: float) -> list[Settled]:
        """Look at every file that is due."""
        self._one_foreseen = any(math.isfinite(file.ready_at) for file in self.waiting.values())
        due = sorted((file for file in self.waiting.values() if file.due <= now), key=lambda file: file.since)
        return [settled for file in due if (settled := self._look(file, now)) is not None]

    def _look(self, file: Waiting, now: float) -> Settled | None:
        full = self.root / file.path
        try:
            stamp = self.examine(full)
            if not stamp.same_version(file.stamp):
                self._changed(file, stamp, now)
                return None
            file.stamp = stamp
            still = now - file.since
            if still < self.settle_seconds + file.hold:
                self._foresee(file, full, now)
                return None
            test = self.complete(full)
            file.tests += 1
            wanted = self._wanted(test) + file.hold
            if test.whole and still < wanted:
                file.reason = "lies still, waiting a little longer"
                file.due = file.since + wanted
                return None
            if test.whole:  # or of no known format: then its reader refuses it, with reasons
                if not self.examine(full).same_version(stamp):
                    self._changed(file, self.examine(full), now)
                    return None
                return self._ready(file)
            reason = test.reason
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                del self.waiting[file.path]
                return Settled(file.path, None, "gone")
            still, reason = now - file.since, f"cannot be read: {error.strerror}"
        return self._incomplete(file, reason, still, now)

    def _foresee(self, file: Waiting, full: Path, now: float) -> None:
        """Not still for long enough: when to look next, and when it would be ready."""
        enough = file.since + self.settle_seconds + file.hold
        file.due = min(now + self.settle_seconds / 2, enough)
        if not (file.foretold or self._one_foreseen):  # one is enough, and thousands may wait
            test, file.foretold = self.complete(full), True
            if test.whole and test.container:
                file.ready_at = file.since + self._wanted(test) + file.hold
                self._one_foreseen = True
        if now < file.ready_at - FORESEEN_SECONDS < file.due:
            file.due = file.ready_at - FORESEEN_SECONDS

    def _wanted(self, test: Completeness) -> float:
        if not test.container:
            return self._patience(UNKNOWN_SECONDS)
        return self.settle_seconds * (1.0 if test.has_end_marker else UNMARKED_FACTOR)

    def _patience(self, seconds: float) -> float:
        return UNMARKED_FACTOR * self.settle_seconds if self.impatient else seconds

    def _ready(self, file: Waiting) -> Settled:
        del self.waiting[file.path]
        self._newest_whole = max(self._newest_whole, file.stamp.mtime_ns)
        return Settled(file.path, file.stamp, "ready", versions=file.versions)

    def _incomplete(self, file: Waiting, reason: str, still: float, now: float) -> Settled | None:
        overtaken = file.stamp.mtime_ns < self._newest_whole
        limit = self._patience(OVERTAKEN_SECONDS if overtaken else ABANDONED_SECONDS)
        if still >= limit + file.hold:
            del self.waiting[file.path]
            return Settled(file.path, file.stamp, "abandoned", reason)
        file.reason = f"is not complete: {reason}"
        pause = min(RECHECK_SECONDS, max(self.settle_seconds, still))
        file.due = min(now + pause, max(file.since + limit + file.hold, now + self.settle_seconds / 2))
        return None

    def _changed(self, file: Waiting, stamp: Stamp, now: float) -> None:
        rewritten = stamp.inode != file.stamp.inode or stamp.size <= file.stamp.size
        file.versions += rewritten  # a file that only grew is still the same version
        file.stamp, file.since, file.due = stamp, now, now + self.settle_seconds / 2
        file.grew, file.tests, file.foretold, file.ready_at = True, 0, False, math.inf
        file.reason = "is being written"
