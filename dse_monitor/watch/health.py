"""Is the run alive, and can we do our work? Each trouble is said once, and once that it is over."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from dse_monitor.record import Alert

SILENCE_SECONDS = 7200.0  # s without a new checkpoint that are never worth an alert; ours
SILENCE_GAPS = 4.0  # usual gaps between checkpoints without a new one; ours
FAILURES_IN_A_ROW = 3  # ours: one may be an accident, three are a cause
GAPS_KEPT = 32  # gaps the usual one is the median of; ours

SILENCE, FAILURES, DISK = "silence", "failures", "disk"


@dataclass(frozen=True)
class Change:
    """A trouble began or ended.

    Attributes:
        topic: ``silence``, ``failures`` or ``disk``.
        firing: whether it began.
        message: in words.
    """

    topic: str
    firing: bool
    message: str


class Health:
    """Watches the watching of one run. Times are monotonic seconds."""

    def __init__(self, now: float):
        self._last = now
        self._stamps: deque[float] = deque(maxlen=GAPS_KEPT + 1)
        self._failures = 0
        self._firing: set[str] = set()
        self._episodes: dict[str, int] = {}

    def restore(self, alerts: Iterable[Alert]) -> None:
        """Remember what was said before a restart, so that it is not said again."""
        for alert in alerts:
            if alert.kind != "health":
                continue
            topic, episode, status = _from_key(alert.key)
            self._episodes[topic] = max(self._episodes.get(topic, 0), episode)
            (self._firing.add if status == "firing" else self._firing.discard)(topic)

    def key(self, run: str, change: Change) -> str:
        """Key of the alert that tells a change; equal when the same change is told twice."""
        if change.firing:
            self._episodes[change.topic] = self._episodes.get(change.topic, 0) + 1
        episode = self._episodes.get(change.topic, 1)
        return f"{run}:health:{change.topic}:{episode}:{'firing' if change.firing else 'resolved'}"

    def found(self, mtimes: Iterable[float]) -> None:
        """File times (seconds, of the file's own server) of checkpoints that were there before us."""
        for mtime in sorted(mtimes)[-GAPS_KEPT - 1 :]:
            self._stamps.append(mtime)

    def arrived(self, mtime: float, now: float) -> list[Change]:
        """A new checkpoint, or a new version of a rolling one."""
        self._last = now
        if not self._stamps or mtime > self._stamps[-1]:
            self._stamps.append(mtime)
        return self._set(SILENCE, False, "checkpoints are arriving again")

    def evaluated(self, ok: bool, reason: str) -> list[Change]:
        """A checkpoint was measured, or could not be."""
        self._failures = 0 if ok else self._failures + 1
        if ok:
            return self._set(FAILURES, False, "checkpoints can be measured again")
        if self._failures < FAILURES_IN_A_ROW:
            return []
        return self._set(
            FAILURES, True, f"{self._failures} checkpoints in a row could not be measured: {reason}"
        )

    def disk(self, trouble: str) -> list[Change]:
        """Whether results can be written; ``trouble`` says why not, empty when they can."""
        if trouble:
            return self._set(DISK, True, f"results cannot be written ({trouble}); scoring goes on in memory")
        return self._set(DISK, False, "results can be written again; nothing was lost")

    def silent(self, now: float) -> list[Change]:
        """Ask now and then whether the run has gone quiet."""
        waited = now - self._last
        if waited < self.patience:
            return []
        usual = f", usually one every {duration(self.usual_gap)}" if self.usual_gap else ""
        text = (
            f"no new checkpoint for {duration(waited)}{usual}: the training may have ended, crashed or hang"
        )
        return self._set(SILENCE, True, text)

    @property
    def usual_gap(self) -> float:
        """Median time between checkpoints, seconds; 0 before there are two."""
        stamps = list(self._stamps)
        return (
            statistics.median(b - a for a, b in zip(stamps, stamps[1:], strict=False))
            if len(stamps) > 1
            else 0.0
        )

    @property
    def patience(self) -> float:
        """Seconds without a new checkpoint that are worth a word."""
        return max(SILENCE_SECONDS, SILENCE_GAPS * self.usual_gap)

    def _set(self, topic: str, firing: bool, message: str) -> list[Change]:
        if (topic in self._firing) == firing:
            return []
        (self._firing.add if firing else self._firing.discard)(topic)
        return [Change(topic, firing, message)]


def duration(seconds: float) -> str:
    """A time span in words, to two digits: 45 s, 12 min, 3.5 h, 2.1 d."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size or (seconds >= size and unit != "min"):
            amount = seconds / size
            return f"{amount:.0f} {unit}" if amount >= 10 or unit == "min" else f"{amount:.1f} {unit}"
    return f"{seconds:.0f} s"


def _from_key(key: str) -> tuple[str, int, str]:
    *_, topic, episode, status = key.split(":")
    return topic, int(episode), status
