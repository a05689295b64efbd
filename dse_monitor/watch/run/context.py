"""What every part of a watched run shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dse_monitor.watch.dependencies import Clock, Dependencies
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.run.report import Report


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run, how it is watched and with what.

    Attributes:
        folder: the run's folder; need not exist yet.
        out: its output folder.
        name: the run's name, for people.
        options: what the user asked for.
        dependencies: the pieces of other packages it is watched with.
        clock: the time.
        report: its lines on the console.
        wake: ends the watcher's sleep; may be called from any thread.
        elsewhere: whether the real path of a link's target belongs to another run.
        elsewhere: Callable[[str], bool] = lambda path: False
    cancelled: whether the watcher has been asked to end.
    """

    folder: Path
    out: Path
    name: str
    options: WatchOptions
    dependencies: Dependencies
    clock: Clock
    report: Report
    wake: Callable[[], None] = lambda: None
    elsewhere: Callable[[str], bool] = lambda path: False
    cancelled: Callable[[], bool] = lambda: False
