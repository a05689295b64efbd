"""What a run is watched with: the pieces that tests replace, and the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dse_monitor.checkpoints import archive, names
from dse_monitor.checkpoints.names import NameFacts
from dse_monitor.runs.history import History
from dse_monitor.runs.record import Alert, Evaluation
from dse_monitor.watch.files.settle import Completeness

if TYPE_CHECKING:
    from dse_monitor.alerts.book import Status
    from dse_monitor.alerts.parameters import Rules


class Clock(Protocol):
    """Time as the watcher sees it."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def time(self) -> float:
        """Seconds since 1970."""
        ...


class ChangeEvents(Protocol):
    """A source of change events below a folder; see files/hints.py."""

    @property
    def alive(self) -> bool:
        """Whether events can still arrive."""
        ...

    def start(self) -> None:
        """Begin to listen; may raise OSError."""
        ...

    def take(self) -> set[str] | None:
        """Paths relative to the folder since the last call; None when nothing happened."""
        ...

    def stop(self) -> None:
        """Stop listening."""
        ...


class ResultWriter(Protocol):
    """Writes the event data of one run; see publish/events.py for what raises OutputError."""

    alive: bool

    def catch_up(self, evaluations: Iterable[Evaluation], alerts: Iterable[Alert]) -> int:
        """Queue those records that are not written yet; returns how many."""
        ...

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Queue one evaluation."""
        ...

    def add_alert(self, alert: Alert) -> None:
        """Queue one alert."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Queue the state of the run; it replaces the one before."""
        ...

    def flush(self) -> None:
        """Write everything queued."""
        ...

    def reopen(
        self, evaluations: Iterable[Evaluation], alerts: Iterable[Alert], state: dict[str, Any]
    ) -> None:
        """Begin again after a failed write, with all that is missing."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class RunAlerts(Protocol):
    """The alerts of one run; see alerts/book.py."""

    @property
    def states(self) -> Mapping[str, Status]:
        """Where each rule stands, by name."""
        ...

    @property
    def judged(self) -> int:
        """How many checkpoints were judged."""
        ...

    def restore(self, alerts: Iterable[Alert], silences: Iterable[Mapping[str, Any]] = ()) -> None:
        """Take up where a former watcher ended."""
        ...

    def judgements(self) -> dict[str, Any]:
        """What is worth keeping for :meth:`recall`, as plain JSON types."""
        ...

    def recall(self, judged: Mapping[str, Any]) -> None:
        """Spare the next :meth:`advance` what an earlier process judged on the same numbers."""
        ...

    def silence(self, fact: Mapping[str, Any]) -> None:
        """Give no alerts of a rule for a time or until it is resolved."""
        ...

    def advance(self, evaluations: Sequence[Evaluation], *, now: float, more: bool = False) -> list[Alert]:
        """Take in evaluations; returns the alerts that are due."""
        ...


class Delivery(Protocol):
    """Sends alerts in the background; see alerts/sinks/outbox.py."""

    def restore(self, alerts: Iterable[Alert], facts: Iterable[Mapping[str, Any]]) -> None:
        """Send again what a former watcher did not finish."""
        ...

    def submit(self, alert: Alert) -> None:
        """Send an alert; returns at once."""
        ...

    def close(self, timeout: float = ...) -> None:
        """Let deliveries under way finish for so many seconds."""
        ...


class DescribeRun(Protocol):
    """Makes the published state of a run; see publish/state.py."""

    def __call__(
        self,
        evaluations: Sequence[Evaluation],
        alerts: Sequence[Alert],
        *,
        run: str,
        watcher: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The state as plain JSON types."""
        ...


def _hints(folder: Path, wake: Callable[[], None], out: Path | None) -> ChangeEvents:
    try:
        from dse_monitor.watch.files.hints import Hints
    except ImportError as error:  # images for GPUs may lack it; scans find everything, only later
        raise OSError("watchdog is not installed") from error
    return Hints(folder, wake, out)


@dataclass(frozen=True)
class Dependencies:
    """The pieces of other packages that a run needs.

    Attributes:
        is_candidate: judges a path below the run.
        is_rolling: judges a name that is written over and over.
        from_name: what a path says about progress.
        may_hold_weights: whether a file whose path does not say so may be a checkpoint all the same.
        holds_weights: whether a file begins as one.
        check_complete: whether a file is whole.
        writer: makes the writer of event data for a folder.
        state: makes the published state of a run.
        alerts: makes the alerts of a run from its name, the rules and the history of its evaluations.
        outbox: makes what delivers alerts, from sinks, a function that records and a clock.
        hints: makes a source of change events from the run's folder, a function to call at each and a folder
            to ignore; may raise OSError. None to do without.
    """

    is_candidate: Callable[[str], bool]
    is_rolling: Callable[[str], bool]
    from_name: Callable[[str], NameFacts]
    may_hold_weights: Callable[[str], bool]
    holds_weights: Callable[[str], bool]
    check_complete: Callable[[Path], Completeness]
    writer: Callable[[Path], ResultWriter]
    state: DescribeRun
    alerts: Callable[[str, Rules | None, History], RunAlerts]
    outbox: Callable[[Sequence[Any], Callable[[dict[str, Any]], object], Callable[[], float]], Delivery]
    hints: Callable[[Path, Callable[[], None], Path | None], ChangeEvents] | None = _hints

    @classmethod
    def real(cls) -> Dependencies:
        """The pieces of this project."""
        from dse_monitor.alerts.book import AlertBook
        from dse_monitor.alerts.sinks.outbox import Outbox
        from dse_monitor.publish.events import EventWriter
        from dse_monitor.publish.state import run_state

        return cls(
            is_candidate=names.is_candidate,
            is_rolling=names.is_rolling,
            from_name=names.from_name,
            may_hold_weights=names.may_hold_weights,
            holds_weights=archive.holds_weights,
            check_complete=archive.check_complete,
            writer=EventWriter,
            state=run_state,
            alerts=lambda name, rules, history: AlertBook(name, rules, history=history),
            outbox=Outbox,
        )
