"""What a watcher does at this moment, in a small file for `dse-monitor status` and for watchers elsewhere."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dse_monitor import atomic
from dse_monitor.runs import locking

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
        atomic.write_text(Path(folder) / NAME, json.dumps(asdict(self), indent=1) + "\n")


def read(folder: Path) -> Heartbeat | None:
    """The last word of the watcher of an output folder; None if there never was one, or it is unreadable."""
    try:
        data = json.loads((Path(folder) / NAME).read_bytes())
        known = {name: data[name] for name in Heartbeat.__dataclass_fields__ if name in data}
        if known.get("progress") is not None:
            known["progress"] = tuple(known["progress"])
        return Heartbeat(**known)
    except (OSError, ValueError, TypeError):
        return None


def new(version: str, now: float, **facts: Any) -> Heartbeat:
    """A heartbeat of this process."""
    me = locking.Holder.me()
    return Heartbeat(
        host=me.host, pid=os.getpid(), boot=me.boot, started=me.started, version=version, time=now, **facts
    )
