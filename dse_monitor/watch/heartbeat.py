"""What a watcher does at this moment, in a small file for `dse-monitor status` and for watchers elsewhere."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dse_monitor.publish.best import write_atomically
from dse_monitor.watch import locking

NAME = "watcher.json"


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """One word of a living watcher.

    Attributes:
        host: machine it runs on.
        pid: process id there.
        boot: id of that machine's boot.
        started: start of the process, clock ticks since boot.
        version: of dse-monitor.
        state: ``waiting``, ``evaluating``, ``deferred``, ``missing`` (no run folder) or ``ended``.
        since: when the watcher began, seconds since 1970.
        time: when this was written, seconds since 1970.
        every: seconds until the next word at the latest.
        scored: evaluations with a number.
        failed: evaluations without one.
        queue: checkpoints that are ready and wait.
        settling: checkpoints that are being written or lie still.
        skipped: checkpoints passed over because of an option.
        present: candidates found by the last scan.
        current: checkpoint under evaluation, relative to the run; empty if there is none.
        progress: stage, done and total of it.
        next_scan: seconds until the next look at the folder.
        last_error: newest problem in words.
        message: why it waits, in words.
    """

    host: str
    pid: int
    boot: str = ""
    started: int = 0
    version: str = ""
    state: str = "waiting"
    since: float = 0.0
    time: float = 0.0
    every: float = 30.0
    scored: int = 0
    failed: int = 0
    queue: int = 0
    settling: int = 0
    skipped: int = 0
    present: int = 0
    current: str = ""
    progress: tuple[str, int, int] | None = None
    next_scan: float = 0.0
    last_error: str = ""
    message: str = ""

    def write(self, folder: Path) -> None:
        """Replace the heartbeat in an output folder.

        Raises:
            OSError: it cannot be written.
        """
        write_atomically(Path(folder) / NAME, json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class Status:
    """Whether a run is being watched, and what its watcher does.

    Attributes:
        alive: whether a watcher is at work.
        age: seconds since its last word; None if there never was one.
        heartbeat: that word.
        reason: how ``alive`` is known.
    """

    alive: bool
    age: float | None = None
    heartbeat: Heartbeat | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return asdict(self)


def status(folder: Path, clock: Callable[[], float] = time.time) -> Status:
    """What the watcher of an output folder (usually ``<RUN>/dse``) does now."""
    path = Path(folder) / NAME
    try:
        data = json.loads(path.read_bytes())
        known = {name: data[name] for name in Heartbeat.__dataclass_fields__ if name in data}
        if known.get("progress") is not None:
            known["progress"] = tuple(known["progress"])
        beat = Heartbeat(**known)
        age = max(0.0, clock() - path.stat().st_mtime)
    except (OSError, ValueError, TypeError):
        return Status(alive=False, reason=f"no watcher has worked in {folder}")
    holder = locking.Holder(beat.host, beat.pid, beat.boot, beat.started)
    if beat.state == "ended":
        return Status(alive=False, age=age, heartbeat=beat, reason="the watcher ended as it was asked")
    if holder.host == locking.Holder.me().host:
        alive = holder.is_here and holder.alive
        reason = f"process {beat.pid} {'is there' if alive else 'is gone'}"
    else:
        alive = age < locking.FRESH_SECONDS
        reason = f"its last word from {beat.host} is {age:.0f} s old"
    return Status(alive=alive, age=age, heartbeat=beat, reason=reason)


def new(version: str, now: float, **facts: Any) -> Heartbeat:
    """A heartbeat of this process."""
    me = locking.Holder.me()
    return Heartbeat(
        host=me.host, pid=os.getpid(), boot=me.boot, started=me.started, version=version, time=now, **facts
    )
