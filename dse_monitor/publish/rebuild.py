"""Event data written again in place of what was there; that of a run from its ledger."""

# pyright: reportAttributeAccessIssue=false
# (tensorboard's generated protocol modules make their classes at run time)

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from dse_monitor.publish import encoding
from dse_monitor.publish.event_files import EventFile, replacing_files
from dse_monitor.publish.events import EventWriter
from dse_monitor.publish.scalar_steps import ScalarSteps
from dse_monitor.publish.state import run_state
from dse_monitor.publish.tags import TagSequence
from dse_monitor.runs import ledger
from dse_monitor.runs.locking import RunLock
from dse_monitor.runs.record import TAG_META, Alert, Evaluation


def rebuild_events(folder: Path) -> int:
    """Write the event data of an output folder again from its ledger; returns the number of evaluations.

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
        rebuild(folder, view.evaluations, view.alerts, state)
    finally:
        lock.release()
    return len(view.evaluations)


def rebuild(
    folder: Path, evaluations: Iterable[Evaluation], alerts: Iterable[Alert], state: dict[str, Any]
) -> Path:
    """Write all event data again: one new file beside the old ones, which are removed once it is whole.

    A reader that sees both for a moment finds the same sequence numbers twice and keeps one of each.

    Args:
        folder: the run's output folder.
        evaluations: every evaluation of the run, in any order.
        alerts: every alert, in any order.
        state: see `publish.state.run_state`.

    Returns:
        The new event file.

    Raises:
        OutputError: it could not be written; the old files are untouched.
    """
    with replacing_files(Path(folder)) as (draft, target), EventWriter(folder) as writer:
        writer.open_at(draft)
        for evaluation in sorted(evaluations, key=lambda record: record.seq):
            writer.add_evaluation(evaluation)
        for alert in sorted(alerts, key=lambda record: record.seq):
            writer.add_alert(alert)
        writer.set_state(state)
    return target


def rebuild_numbers(
    folder: Path,
    tag: str,
    measured: Iterable[tuple[Evaluation, float, dict[str, float]]],
    evaluations: Iterable[Evaluation],
) -> Path:
    """Write further numbers of evaluations, in a folder of their own, in place of what was there.

    Args:
        folder: below the run's output folder; TensorBoard takes it for a run.
        tag: prefix of the plain scalars' tags.
        measured: evaluations in the order of their sequence numbers, when each number was found (seconds
            since 1970), and the numbers by name; those that are not finite are left out.
        evaluations: every evaluation of the run in that order: the numbers stand at the steps of its own
            scalars.

    Raises:
        OutputError: it could not be written; the old files are untouched.
    """
    sequence, events = TagSequence(TAG_META), []
    described: set[str] = set()
    counter = ScalarSteps()
    scored = (e for e in evaluations if e.status == "scored" and e.components and e.settings)
    steps = {e.seq: counter.next(e) for e in scored}
    for evaluation, when, numbers in measured:
        finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
        step, tags, first = sequence.next(evaluation.seq)
        tensor = encoding.json_string({"seq": evaluation.seq, "companions": finite})
        joined = encoding.tab_value(tags[0], tensor, described=not first)
        events.append(Event(wall_time=when, step=step, summary=Summary(value=[joined])))
        values = [
            encoding.scalar_value(tag + name, number, described=described) for name, number in finite.items()
        ]
        at = steps[evaluation.seq]
        events.append(Event(wall_time=when, step=at, summary=Summary(value=values)))
    with replacing_files(Path(folder)) as (draft, target):
        file = EventFile(draft, time.time())
        try:
            file.append([event.SerializeToString() for event in events])
        finally:
            file.close()
    return target
