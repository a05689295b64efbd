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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dse_monitor.alerts.condensed import NEWEST, Condensed
from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.rules import Judgement, judge
from dse_monitor.runs.history import History, Selection
from dse_monitor.runs.order import Bools, Floats, Order, order
from dse_monitor.runs.record import Evaluation
from dse_monitor.runs.series import (
    GrowingLambda,
    Series,
    comparable,
    dse_errors,
    is_measured,
    places_of,
    terms,
)

PUT_OFF = 0.25  # of a line's length: so many older checkpoints may arrive before it is judged again; ours
JUDGING = 3  # raised whenever rules.py, condensed.py or this file judge otherwise than before the change
# Of the table of a trace: positions, the five of series.terms, whether it is the untrained network, lambda
# as known at each checkpoint.
_ROWS = 8


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


@dataclass(frozen=True)
class Lineage:
    """The line of checkpoints that led to the newest one.

    Attributes:
        evaluations: in training order.
        axis: unit of ``x``.
        x: positions [n], those of the whole run (Series).
        untrained: which are the untrained network [n].
        abandoned: how many were left out because they belong to an abandoned branch.
        furthest: the largest position of the whole run; minus infinity if there is none.
        extends: whether a checkpoint beyond ``furthest`` simply comes behind the others, on the same axis.
    """

    evaluations: list[Evaluation] | Selection
    axis: str
    x: Floats
    untrained: Bools
    abandoned: int
    furthest: float
    extends: bool


def lineage(evaluations: Iterable[Evaluation]) -> Lineage:
    """The line of checkpoints that led to the newest one.

    When a run is resumed from an older checkpoint, files appear again under their old names with other
    weights. What was measured before that beyond this point belongs to an abandoned branch and is left out
    until it, too, is measured anew.
    """
    if isinstance(evaluations, History):
        measured = evaluations.comparable()
        found, same_weights = measured.order(), measured.same_weights
    else:
        measured = comparable(evaluations)
        found = order(places_of(measured))

        def same_weights(one: int, other: int) -> bool:
            contents = {measured[one].source.content, measured[other].source.content}
            return "" in contents or len(contents) == 1

    kept = _on_branch(found, same_weights)
    rows = found.rows[kept]
    chosen = measured.take(rows) if isinstance(measured, Selection) else [measured[row] for row in rows]
    return Lineage(
        evaluations=chosen,
        axis=found.axis,
        x=found.x[kept],
        untrained=found.untrained[kept],
        abandoned=len(found.rows) - len(rows),
        furthest=float(found.x[-1]) if len(found.x) else -math.inf,
        extends=found.axis != "order" and found.steps_per_epoch is None,
    )


def _on_branch(found: Order, same_weights: Callable[[int, int], bool]) -> Bools:
    """Which places of an order are not beyond one that was written anew after them [n].

    Args:
        found: the order; its rows are in the order of measuring.
        same_weights: whether two rows hold the same weights.
    """
    rewritten = {new for old, new in found.replaced if not same_weights(old, new)}
    if not rewritten:
        return np.ones(len(found.rows), bool)
    counted = dict(
        found.merged
    )  # what was written anew may hold the weights of another name, which counts for it
    anew = np.full(int(found.rows.max()) + 1, -1)
    for row in sorted(rewritten):
        anew[counted.get(row, row)] = row
    return found.rows > np.concatenate([[-1], np.maximum.accumulate(anew[found.rows])[:-1]])


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
        self._furthest, self._extends = -math.inf, False  # of the lineage
        self._weights: set[tuple[str, str]] = set()  # of evaluations that are kept in a plain list

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

    def series(self) -> Series:
        """The line as it stands, with the lambda of the rules or the adaptive one."""
        columns = self._table[1:6, : len(self.evaluations)]
        return Series.from_columns(
            self.evaluations, self.axis, self.x, self._untrained, columns, self.rules.lam
        )

    @property
    def _untrained(self) -> Bools:
        return self._table[6, : len(self.evaluations)] != 0

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
        plain = [e for e in added or () if is_measured(e) and self._is_new(e, evaluations)]
        if len(plain) == 1 == len(added or ()) and self._grows_by(plain[0]):
            self._grow(plain[0])
        elif plain and len(plain) == len(added or ()) and all(map(self._stands_between, plain)):
            self._put_off.update(map(self._position, plain))
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
        self._table[0, n] = self._furthest = self._position(new)
        self._table[1:6, n : n + 1] = terms([new])
        self._table[6, n] = False
        self.evaluations.append(new)
        self.newest = new.seq
        self._judge_from(n)

    def _replace(self, evaluations: Collection[Evaluation]) -> None:
        """Put everything known into training order anew."""
        self._put_off.clear()
        before = self._table[:-1, : len(self.evaluations)]
        line = lineage(evaluations)
        chosen, x, self.axis = line.evaluations, line.x, line.axis
        self._furthest, self._extends = line.furthest, line.extends
        self.newest = (
            chosen.last_seq if isinstance(chosen, Selection) else max((e.seq for e in chosen), default=0)
        )
        columns = chosen.terms() if isinstance(chosen, Selection) else terms(chosen)
        now = np.vstack([x, columns, line.untrained.astype(np.float64)])
        if not isinstance(evaluations, History):
            self._weights = {_weights(e) for e in evaluations if is_measured(e)}
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
            counts = self._look_at(k)
            self.phases.append(step(self.phase, self._judge(k), k, self.rules) if counts else self.phase)

    def _nothing(self) -> Condensed:
        """Nothing looked at yet."""
        return Condensed(_ROWS - 2, max(NEWEST, 2 * self.rules.plateau))

    def _look_at(self, k: int) -> bool:
        """Know the checkpoint with this index as well, for the judgement on it and on those behind it.

        Returns:
            False for the untrained network, which is nobody's best and no part of lambda.
        """
        counts = not self._table[6, k]
        if counts:
            self._condensed.append(self._table[:6, k])
            self._lambda.add(float(self._table[1, k]), float(self._table[2, k]))
        self._table[-1, k] = self._lambda.value
        return counts

    def _position(self, new: Evaluation) -> float:
        """Its position on the axis; nan where it has none."""
        done = new.source.epoch if self.axis == "epoch" else new.source.step
        return math.nan if done is None else float(done)

    def _is_new(self, new: Evaluation, evaluations: Collection[Evaluation]) -> bool:
        """Whether it holds weights that no other does, so that it is a checkpoint more."""
        if isinstance(evaluations, History):
            return not evaluations.is_repeated(new)
        weights = _weights(new)
        known = weights in self._weights and bool(new.source.content)
        self._weights.add(weights)
        return not known

    def _grows_by(self, new: Evaluation) -> bool:
        """Whether an evaluation simply stands behind all others, and changes nothing else."""
        if not self.evaluations or not self._extends or new.source.step == 0:
            return False
        last = self.evaluations[-1]
        back = (new.source.epoch or math.inf) < (last.source.epoch or 0.0)
        ahead = self._furthest < self._position(new) < math.inf and not back
        return ahead and new.seq > self.newest and new.settings == last.settings

    def _stands_between(self, new: Evaluation) -> bool:
        """Whether an evaluation takes a free place before the newest, and changes nothing else."""
        if not self.evaluations or not self._extends:
            return False
        at = self._position(new)
        if not -math.inf < at < self.x[-1] or new.settings != self.evaluations[-1].settings:
            return False
        return at not in self._put_off and float(self.x[np.searchsorted(self.x, at)]) != at

    def _judge(self, k: int) -> Judgement:
        """The judgement on the checkpoint looked at last, at the lambda of that time."""
        known = self._condensed
        x, columns = known.table[0], known.table[1:]
        lam = float(self._table[-1, k]) if self.rules.lam is None else self.rules.lam
        dse = columns[0] + lam * columns[1]
        lengths = None if known.block == 1 else known.lengths
        return judge(x, dse, dse_errors(columns, lam), self.rules, lengths)


def _weights(evaluation: Evaluation) -> tuple[str, str]:
    """What is equal for the same weights under the same settings."""
    settings = evaluation.settings
    return evaluation.source.content, settings.fingerprint if settings else ""


def _shared(before: Floats, now: Floats) -> int:
    """How many columns at the beginning are what they were: all that a judgement looks at."""
    n = min(before.shape[1], now.shape[1])
    before, now = before[:, :n], now[:, :n]
    same = (before == now) | (np.isnan(before) & np.isnan(now))
    changed = np.flatnonzero(~same.all(axis=0))
    return int(changed[0]) if len(changed) else n
