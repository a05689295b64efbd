"""Is a run being watched, and what does its watcher do? Read from its heartbeat; no lock, no waiting."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dse_monitor.runs import heartbeat, locking
from dse_monitor.runs.heartbeat import Heartbeat


@dataclass(frozen=True, kw_only=True)
class Status:
    """Whether a run is being watched, and what its watcher does.

    Attributes:
        folder: the run's output folder.
        alive: whether a watcher is at work.
        reason: how that is known.
        age: seconds since its last word; NaN if there never was one.
        heartbeat: that word.
    """

    folder: Path
    alive: bool
    reason: str
    age: float = math.nan
    heartbeat: Heartbeat | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return {
            **asdict(self),
            "folder": str(self.folder),
            "age": self.age if math.isfinite(self.age) else None,
        }


def read_status(folder: Path, *, now: float) -> Status:
    """What the watcher of an output folder (usually ``<RUN>/dse``) does.

    Args:
        folder: the output folder.
        now: seconds since 1970.
    """
    folder = Path(folder)
    beat = heartbeat.read(folder)
    if beat is None:
        return Status(folder=folder, alive=False, reason="no watcher has worked here")
    age = math.nan
    with contextlib.suppress(OSError):
        age = max(0.0, now - (folder / heartbeat.NAME).stat().st_mtime)
    alive, reason = _judge(beat, age)
    return Status(folder=folder, alive=alive, reason=reason, age=age, heartbeat=beat)


def _judge(beat: Heartbeat, age: float) -> tuple[bool, str]:
    holder = locking.Holder(beat.host, beat.pid, beat.boot, beat.started)
    if beat.state == "ended":
        return False, "the watcher ended as it was asked"
    if holder.host == locking.Holder.me().host:
        alive = holder.is_here and holder.alive
        return alive, f"process {beat.pid} is {'at work' if alive else 'gone without a word'}"
    fresh = age < locking.FRESH_SECONDS
    return fresh, f"process {beat.pid} on {beat.host} spoke {age:.0f} s ago"


def render(status: Status) -> str:
    """A status as a few aligned lines."""
    beat = status.heartbeat
    lines = [("run", f"{status.folder}   {'watched' if status.alive else 'not watched'}: {status.reason}")]
    if beat is not None:
        lines.append(("done", f"{beat.scored:,} scored, {beat.failed:,} could not be measured"))
        passed = f", {beat.skipped:,} passed over" if beat.skipped else ""
        lines.append(("queue", f"{beat.queue:,} waiting, {beat.settling:,} being written{passed}"))
        if status.alive and beat.current:
            stage, done, total = beat.progress or ("", 0, 0)
            share = f" {done:,} of {total:,}" if total else ""
            lines.append(("now", f"{beat.current}   {stage}{share}".rstrip()))
        elif status.alive:
            lines.append(("now", beat.message or f"{beat.state}; next look in {beat.next_scan:.0f} s"))
        if beat.last_error:
            lines.append(("problem", beat.last_error))
    return "\n".join(f"{label:<10}{text}" for label, text in lines)
