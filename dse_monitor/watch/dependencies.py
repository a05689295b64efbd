"""What a run is watched with: the pieces that tests replace, and the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dse_monitor.checkpoints import archive, names
from dse_monitor.checkpoints.names import NameFacts
from dse_monitor.runs.history import History
from dse_monitor.watch.files.settle import Completeness

if TYPE_CHECKING:
    from dse_monitor.watch.files.hints import Hints


def _hints(folder: Path, wake: Callable[[], None], out: Path | None) -> Hints:
    try:
        from dse_monitor.watch.files.hints import Hints
    except ImportError as error:  # images for GPUs may lack it; scans find everything, only later
        raise OSError("watchdog is not installed") from error
    return Hints(folder, wake, out)


class Clock(Protocol):
    """Time as the watcher sees it."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def time(self) -> float:
        """Seconds since 1970."""
        ...


@dataclass(frozen=True)
class Parts:
    """The pieces of other packages that a run needs.

    Attributes:
        is_candidate: judges a path below the run.
        is_rolling: judges a name that is written over and over.
        from_name: what a path says about progress.
        check_complete: whether a file is whole.
        writer: makes the writer of event data for a folder.
        state: makes the published state of a run.
        book: makes the alerts of a run from its name, the rules and the history of its evaluations.
        outbox: makes what delivers alerts, from sinks, a function that records and a clock.
        hints: makes a source of change events; may raise OSError. None to do without.
    """

    is_candidate: Callable[[str], bool]
    is_rolling: Callable[[str], bool]
    from_name: Callable[[str], NameFacts]
    check_complete: Callable[[Path], Completeness]
    writer: Callable[[Path], Any]
    state: Callable[..., dict[str, Any]]
    book: Callable[[str, Any, History], Any]
    outbox: Callable[..., Any]
    hints: Callable[[Path, Callable[[], None], Path | None], Hints] | None = _hints

    @classmethod
    def real(cls) -> Parts:
        """The pieces of this project."""
        from dse_monitor.alerts.book import AlertBook
        from dse_monitor.alerts.sinks.outbox import Outbox
        from dse_monitor.publish.events import EventWriter
        from dse_monitor.publish.state import run_state

        return cls(
            is_candidate=names.is_candidate,
            is_rolling=names.is_rolling,
            from_name=names.from_name,
            check_complete=archive.check_complete,
            writer=EventWriter,
            state=run_state,
            book=lambda name, rules, history: AlertBook(name, rules, history=history),
            outbox=Outbox,
        )
