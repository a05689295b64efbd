"""The event data of a run, written anew from its ledger."""

from __future__ import annotations

from pathlib import Path

from dse_monitor.publish import events
from dse_monitor.publish.state import run_state
from dse_monitor.runs import ledger
from dse_monitor.runs.locking import RunLock


def rebuild_events(folder: Path) -> int:
    """Write the event data of an output folder anew from its ledger; returns the number of evaluations.

    Raises:
        RunError: there is no ledger, or a watcher is at work: it writes to the event data.
        OutputError: the event data cannot be written; what was there is untouched.
    """
    lock = RunLock(folder)
    view = ledger.read(folder)
    lock.take()
    try:
        state = run_state(
            view.evaluations, view.alerts, run=Path(folder).absolute().parent.name, watcher=None
        )
        events.rebuild(folder, view.evaluations, view.alerts, state)
    finally:
        lock.release()
    return len(view.evaluations)
