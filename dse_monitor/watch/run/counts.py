"""What bare numbers in the names of a run's checkpoints count, as its watcher finds out (runs/units.py)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dse_monitor.runs import identity, units
from dse_monitor.runs.ledger import Ledger
from dse_monitor.runs.record import Evaluation
from dse_monitor.runs.units import Decision, Numbered
from dse_monitor.watch.files.folders import EVENTS
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.poller import Poller
from dse_monitor.watch.run.records import Records

LOOKED_AT = 200  # checkpoints, and entries beside them, that a decision looks at; chosen by us
OFTEN, SELDOM = (
    10,
    50,
)  # checkpoints after each of which, and after how many, the unit is judged; chosen by us
EVENTS_LIMIT = 20_000  # records of an event file that are looked at; chosen by us


class Counts:
    """Gives evaluations whose names hold bare numbers an epoch or a step.

    Args:
        context: the run.
        ledger: holds the decision.
        records: what is on record.
        poller: sees the files.
        known: data of the newest ``unit`` fact; None if there is none.

    Attributes:
        revised: whether the decision changed after it was first used: what is on record has to be read anew.
    """

    def __init__(
        self,
        context: RunContext,
        ledger: Ledger,
        records: Records,
        poller: Poller,
        known: dict[str, Any] | None,
    ):
        self._context, self._ledger, self._records, self._poller = context, ledger, records, poller
        self._from_name = context.dependencies.from_name
        self._decision: Decision | None = None
        self._asked = 0
        self.revised = False
        if known is not None and known.get("unit") in ("epoch", "step"):
            self._decision = Decision(known["unit"], str(known.get("why", "")), bool(known.get("firm")))
        asked = context.options.unit
        if asked is not None and (self._decision is None or self._decision.unit != asked):
            self._use(Decision(asked, "--unit says so", firm=True))
            self.revised = False  # nothing was read yet

    def of(self, path: str, evaluation: Evaluation) -> Evaluation:
        """The evaluation of a checkpoint, with the number of its name as its epoch or step."""
        facts = self._from_name(path)
        if facts.number is None or facts.saves:
            return evaluation
        decision = self._decision
        if decision is None or (not decision.firm and self._is_due()):
            decision = self._decide(path, evaluation)
        counted = units.with_number(evaluation, facts.number, decision)
        if counted is not evaluation and decision != self._decision:
            self._use(decision)
        return counted

    def _is_due(self) -> bool:
        """Whether to decide anew: often at first, seldom in a long run."""
        self._asked += 1
        return self._asked <= OFTEN or self._asked % SELDOM == 0

    def _decide(self, path: str, evaluation: Evaluation) -> Decision:
        return units.decide(
            list(self._numbered(path, evaluation)),
            {unit for other in self._poller.paths[:LOOKED_AT] if (unit := self._said(other))},
            largest_step(self._context.folder),
        )

    def _use(self, decision: Decision) -> None:
        """Take a decision for good, or for now: what was counted otherwise has to be read anew."""
        before, self._decision = self._decision, decision
        if before is not None and (before.unit, before.firm) == (decision.unit, decision.firm):
            return
        self.revised = before is not None and before.unit != decision.unit
        data = {"unit": decision.unit, "why": decision.why, "firm": decision.firm}
        self._ledger.append("unit", data)
        if before is None or self.revised:
            text = f"bare numbers in names are taken as {decision.unit}s: {decision.why}"
            self._context.report.once(text, f"{text}; --unit decides otherwise")

    def _numbered(self, path: str, evaluation: Evaluation) -> Iterator[Numbered]:
        """Checkpoints with bare numbers: the one at hand, those on record, those that lie there."""
        facts, source = self._from_name(path), evaluation.source
        if facts.number is not None:
            yield Numbered(facts.number, source.mtime, source.epoch, source.step)
        history = self._records.history
        recorded = {path}
        for known in history[-LOOKED_AT:]:
            number = self._from_name(known.source.path).number
            recorded.add(known.source.path)
            if number is not None:
                yield Numbered(number, known.source.mtime, *_stored(known))
        for other in self._poller.paths[:LOOKED_AT]:
            facts = self._from_name(other)
            if other not in recorded and facts.number is not None and not facts.saves:
                yield Numbered(facts.number, self._mtime(other))

    def _mtime(self, path: str) -> float:
        try:
            return identity.stamp(self._context.folder / path).mtime_ns / 1e9
        except OSError:
            return float("nan")

    def _said(self, path: str) -> str:
        facts = self._from_name(path)
        epoch, step = facts.epoch_done is not None, facts.step_done is not None
        return "both" if epoch and step else "epoch" if epoch else "step" if step else ""


def _stored(evaluation: Evaluation) -> tuple[float | None, float | None]:
    """Epoch and step that a file itself told, not its name."""
    source = evaluation.source
    named = " in the name"
    epoch = None if named in source.epoch_source else source.epoch
    return epoch, None if named in source.step_source else source.step


def largest_step(run: Path) -> int:
    """Largest step in the event files of a run, in its folder or one below; 0 if there are none.

    Of each record only the first bytes are read: TFRecord's length, then wall time and step of the Event
    message (tensorflow/core/util/event.proto).
    """
    largest = 0
    for path in _event_files(run):
        try:
            with path.open("rb") as file:
                largest = max(largest, max(_steps(file), default=0))
        except OSError:
            continue
    return largest


def _event_files(run: Path) -> list[Path]:
    found = []
    try:
        for folder in (run, *sorted(path for path in run.iterdir() if path.is_dir())[:LOOKED_AT]):
            with os.scandir(folder) as listing:
                found += [Path(entry.path) for entry in listing if entry.name.startswith(EVENTS)]
    except OSError:
        pass
    return [path for path in found if path.parent.name != "dse" and path.is_file()][-LOOKED_AT:]


def _steps(file: Any) -> Iterator[int]:
    for _ in range(EVENTS_LIMIT):
        head = file.read(12)
        if len(head) < 12:
            return
        (length,) = struct.unpack("<Q", head[:8])
        start = file.read(min(length, 24))
        if len(start) > 10 and start[0] == 0x09 and start[9] == 0x10:
            step = shift = 0
            for byte in start[10:]:
                step |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            yield step if step < 1 << 62 else 0
        if length > 1 << 30:
            return  # no event file
        file.seek(length - len(start) + 4, os.SEEK_CUR)
