"""A run judged checkpoint by checkpoint, always with what was known then.

The outcome depends on which evaluations there are, not on the order they arrived in: they are put into
training order first. Only what changed since the last look is judged again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dse_monitor.alerts.condensed import NEWEST, Condensed
from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.rules import Judgement, judge
from dse_monitor.runs.history import History, Selection
from dse_monitor.runs.record import Evaluation
from dse_monitor.runs.series import (
    Floats,
    GrowingLambda,
    dse_errors,
    in_training_order,
    is_measured,
    position,
    terms,
)

PUT_OFF = 0.25  # of a line's length: so many older checkpoints may arrive before it is judged again; ours
JUDGING = 2  # raised whenever rules.py, condensed.py or this file judge otherwise than before the change
_ROWS = 7  # of the table of a trace: positions, the five of series.terms, lambda as known at each checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Where a run stands after a checkpoint.

    Attributes:
        status: ``inactive``, ``pending``, ``firing`` or ``resolved``.
        streak: checkpoints in a row beyond the margin.
        calm: checkpoints in a row that had recovered, while firing.
        since: index of the checkpoint from which the drop is counted; None without one.
        first_drop: drop of the level when the alarm was raised.
        severity: ``warning``, or ``critical`` once the drop has grown by ``Rules.worsened``.
        plateau: whether the run stands on a plateau.
        wavering: checkpoints in a row that say otherwise than ``plateau``.
    """

    status: str = "inactive"
    streak: int = 0
    calm: int = 0
    since: int | None = None
    first_drop: float = 0.0
    severity: str = "warning"
    plateau: bool = False
    wavering: int = 0


_FIELDS = tuple(field.name for field in dataclasses.fields(Phase))


def step(phase: Phase, judgement: Judgement, index: int, rules: Rules) -> Phase:
    """The phase after one more checkpoint: the whole state machine. An unchanged phase is the same object."""
    new = _step(phase, judgement, index, rules)
    return phase if new == phase else new


def _step(phase: Phase, judgement: Judgement, index: int, rules: Rules) -> Phase:
    wavering = 0 if judgement.plateau == phase.plateau else phase.wavering + 1
    turned = wavering >= rules.sustain
    phase = dataclasses.replace(phase, plateau=phase.plateau != turned, wavering=0 if turned else wavering)
    if phase.status == "firing":
        calm = phase.calm + 1 if judgement.recovered else 0
        if calm >= rules.sustain:
            return dataclasses.replace(phase, status="resolved", calm=0, streak=0)
        worse = judgement.level_drop >= rules.worsened * phase.first_drop
        return dataclasses.replace(phase, calm=calm, severity="critical" if worse else phase.severity)
    if not judgement.beyond:
        status = "inactive" if phase.status == "pending" else phase.status
        return dataclasses.replace(phase, status=status, streak=0)
    streak = phase.streak + 1
    firing = streak >= rules.sustain and judgement.significant
    return dataclasses.replace(
        phase,
        status="firing" if firing else "pending",
        streak=streak,
        calm=0,
        since=index if streak == 1 else phase.since,
        first_drop=judgement.level_drop,
        severity="warning",
    )


def lineage(evaluations: Iterable[Evaluation]) -> tuple[list[Evaluation] | Selection, str]:
    """The line of checkpoints that led to the newest one, in training order, and its axis.

    When a run is resumed from an older checkpoint, files appear again under their old names with other
    weights. What was measured before that beyond this point belongs to an abandoned branch and is left out
    until it, too, is measured anew.
    """
    if isinstance(evaluations, History) and (plain := evaluations.in_training_order()) is not None:
        return plain
    measured = list(evaluations)
    chosen, axis = in_training_order(measured)
    if axis == "order":
        return chosen, axis
    rewritten: dict[float, int] = {}
    winners = {(position(e, axis), e.source.path): e for e in chosen}
    for old in measured:
        if old.components is None or (old.source.epoch if axis == "epoch" else old.source.step) is None:
            continue
        new = winners.get((position(old, axis), old.source.path))
        if new is None or not old.source.content or not new.source.content:
            continue
        if new.source.content != old.source.content and new.settings == old.settings and new.seq > old.seq:
            rewritten[position(new, axis)] = new.seq
    return [
        e for e in chosen if not any(position(e, axis) > x and e.seq < seq for x, seq in rewritten.items())
    ], axis


class Trace:
    """The phases of one run after each of its checkpoints.

    Attributes:
        evaluations: the lineage.
        axis: its axis.
        newest: its largest sequence number.
        phases: one per checkpoint.
    """

    def __init__(self, rules: Rules):
        self.rules = rules
        self.evaluations: list[Evaluation] | Selection = []
        self.axis = "epoch"
        self.phases: list[Phase] = []
        self.newest = 0
        self._table: Floats = np.zeros((_ROWS, 0))  # with room to grow
        self._recalled: tuple[str, list[Phase]] = ("", [])
        self._lambda = GrowingLambda()
        self._condensed = self._nothing()
        self._put_off: set[float] = set()  # positions of checkpoints that are not on the line yet

    @property
    def x(self) -> Floats:
        """Positions [n]."""
        return self._table[0, : len(self.evaluations)]

    @property
    def phase(self) -> Phase:
        """Where the run stands now."""
        return self.phases[-1] if self.phases else Phase()

    @property
    def complete(self) -> bool:
        """Whether everything known is on the line; see ``more`` in :meth:`update`."""
        return not self._put_off

    def update(
        self,
        evaluations: Collection[Evaluation],
        added: Sequence[Evaluation] | None = None,
        *,
        more: bool = False,
    ) -> None:
        """Judge what is new, given everything known of the run.

        Args:
            evaluations: all of them, in any order.
            added: those that were not there at the last update, if known: a run that just grew is not sorted
                again.
            more: whether others will follow soon. Then older checkpoints are put off until they are a quarter
                of the line, as each of them means that everything behind it is judged again; together the
                judgements grow with the number of checkpoints and not with its square.
        """
        if added is not None and len(added) == 1 and self._grows_by(added[0]):
            self._grow(added[0])
        elif added is not None and added and all(map(self._stands_between, added)):
            self._put_off.update(position(e, self.axis) for e in added)
        elif added is None or any(map(is_measured, added)):
            self._replace(evaluations)
        if self._put_off and not (more and len(self._put_off) <= PUT_OFF * len(self.phases)):
            self._replace(evaluations)

    def judged(self) -> dict[str, Any]:
        """What was judged, as plain JSON types, for :meth:`recall`: ten thousand judgements take seconds."""
        grouped = itertools.groupby(self.phases)
        runs = [[len(list(same)), *dataclasses.astuple(phase)] for phase, same in grouped]
        return {"digest": self._digest(self._table[:-1, : len(self.phases)]), "phases": runs}

    def recall(self, judged: Mapping[str, Any]) -> None:
        """Use judgements of an earlier process in the first update, if they were made on the same numbers.

        Args:
            judged: what :meth:`judged` said; whatever else it is changes nothing.
        """
        with contextlib.suppress(KeyError, TypeError, ValueError):
            phases = [[Phase(**dict(zip(_FIELDS, run, strict=True)))] * n for n, *run in judged["phases"]]
            self._recalled = str(judged["digest"]), [phase for run in phases for phase in run]

    def _digest(self, columns: Floats) -> str:
        """Of all that a judgement looks at."""
        asked = json.dumps([JUDGING, dataclasses.astuple(self.rules)]).encode()
        return hashlib.sha256(asked + np.ascontiguousarray(columns).tobytes()).hexdigest()

    def _take_recalled(self, columns: Floats) -> int:
        """Take over the recalled phases if they fit; how many there are."""
        (digest, phases), self._recalled = self._recalled, ("", [])
        fits = 0 < len(phases) <= columns.shape[1] and self._digest(columns[:, : len(phases)]) == digest
        self.phases = phases if fits else self.phases
        return len(self.phases)

    def _grow(self, new: Evaluation) -> None:
        """Take in an evaluation that stands behind all others."""
        n = len(self.evaluations)
        if n == self._table.shape[1]:
            self._table = np.hstack([self._table, np.empty((_ROWS, max(n, 64)))])
        self._table[0, n] = position(new, self.axis)
        self._table[1:-1, n : n + 1] = terms([new])
        self.evaluations.append(new)
        self.newest = new.seq
        self._judge_from(n)

    def _replace(self, evaluations: Collection[Evaluation]) -> None:
        """Put everything known into training order anew."""
        self._put_off.clear()
        before = self._table[:-1, : len(self.evaluations)]
        chosen, self.axis = lineage(evaluations)
        self.newest = max((e.seq for e in chosen), default=0)
        if isinstance(evaluations, History) and isinstance(chosen, list):
            chosen = evaluations.select(chosen)
        if isinstance(chosen, Selection):
            x, columns = chosen.positions(self.axis), chosen.terms()
        else:
            x = np.array([position(e, self.axis, k) for k, e in enumerate(chosen, 1)], np.float64)
            columns = terms(chosen)
        now = np.vstack([x, columns])
        same = _shared(before, now) if self.phases else self._take_recalled(now)
        self.evaluations, self._table = chosen, np.vstack([now, np.empty(len(x))])
        self._lambda, self._condensed = GrowingLambda(), self._nothing()
        for k in range(same):
            self._look_at(k)
        self._judge_from(same)

    def _judge_from(self, first: int) -> None:
        """Judge the checkpoints from this index on."""
        del self.phases[first:]
        for k in range(first, len(self.evaluations)):
            self._look_at(k)
            self.phases.append(step(self.phase, self._judge(k), k, self.rules))

    def _nothing(self) -> Condensed:
        """Nothing looked at yet."""
        return Condensed(_ROWS - 1, max(NEWEST, 2 * self.rules.plateau))

    def _look_at(self, k: int) -> None:
        """Know the checkpoint with this index as well, for the judgement on it and on those behind it."""
        if k == 1 and self._table[0, 0] == 0:  # an untrained network is nobody's best
            self._condensed = self._nothing()
        self._condensed.append(self._table[:-1, k])
        self._lambda.add(float(self._table[1, k]), float(self._table[2, k]))
        self._table[-1, k] = self._lambda.value

    def _grows_by(self, new: Evaluation) -> bool:
        """Whether an evaluation simply stands behind all others."""
        if not self.evaluations or self.axis == "order" or not is_measured(new):
            return False
        done = new.source.epoch if self.axis == "epoch" else new.source.step
        ahead = done is not None and math.isfinite(done) and done > self.x[-1]
        return ahead and new.seq > self.newest and new.settings == self.evaluations[-1].settings

    def _stands_between(self, new: Evaluation) -> bool:
        """Whether an evaluation takes a free place before the newest, and changes nothing else."""
        if not self.evaluations or self.axis == "order" or not is_measured(new):
            return False
        done = new.source.epoch if self.axis == "epoch" else new.source.step
        if done is None or not done < self.x[-1] or new.settings != self.evaluations[-1].settings:
            return False
        taken = float(self.x[np.searchsorted(self.x, done)]) == done or float(done) in self._put_off
        return math.isfinite(done) and not taken

    def _judge(self, k: int) -> Judgement:
        """The judgement on the checkpoint looked at last, at the lambda of that time."""
        known = self._condensed
        x, columns = known.table[0], known.table[1:]
        lam = float(self._table[-1, k]) if self.rules.lam is None else self.rules.lam
        dse = columns[0] + lam * columns[1]
        lengths = None if known.block == 1 else known.lengths
        return judge(x, dse, dse_errors(columns, lam), self.rules, lengths)


def _shared(before: Floats, now: Floats) -> int:
    """How many columns at the beginning are what they were: all that a judgement looks at."""
    n = min(before.shape[1], now.shape[1])
    before, now = before[:, :n], now[:, :n]
    same = (before == now) | (np.isnan(before) & np.isnan(now))
    changed = np.flatnonzero(~same.all(axis=0))
    return int(changed[0]) if len(changed) else n
