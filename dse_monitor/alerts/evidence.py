"""The evaluations of one run as they come in, and the views of them that the rules take.

What is derived here follows from the evaluations alone, whatever order they came in.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.rules import median
from dse_monitor.alerts.trace import Trace
from dse_monitor.runs.history import History, Selection
from dse_monitor.runs.order import order
from dse_monitor.runs.record import Evaluation
from dse_monitor.runs.series import places_of


class Evidence:
    """Everything known of one run.

    Args:
        rules: when to speak.
        history: where the caller keeps the evaluations; those handed to :meth:`take_in` are in it already.
            If None, they are kept here.

    Attributes:
        trace: the run judged checkpoint by checkpoint.
        last_time: when the newest evaluation was made, s since 1970; minus infinity before the first.
    """

    def __init__(self, rules: Rules, history: History | None = None):
        self.trace = Trace(rules)
        self.last_time = -math.inf
        self._stale_seconds = rules.stale_seconds
        self._known: set[tuple[Any, ...]] = set()  # of those kept here
        self._newest = 0  # sequence number of the newest known, where the caller keeps them
        self._by_age: list[Evaluation] | History = [] if history is None else history
        self._ordered: Sequence[Evaluation] | None = None
        self._failing: set[str] = set()  # paths of the files that failed since the last success
        self._usual_gap: float | None = None
        self._any_invalid = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was taken in yet."""
        return not self._known and not self._newest

    @property
    def newest_failed(self) -> bool:
        """Whether the newest checkpoint could not be measured."""
        return bool(self._by_age) and self._by_age[-1].status == "failed"

    @property
    def failing(self) -> int:
        """How many files failed since the last success; one that fails again and again counts once."""
        return len(self._failing)

    def take_in(self, evaluations: Sequence[Evaluation], *, more: bool = False) -> Sequence[Evaluation]:
        """Take in evaluations and judge what they change; returns those of them that are new.

        Args:
            evaluations: new ones, or all there are.
            more: whether others will follow soon (see :meth:`Trace.update`).
        """
        added = self._new(evaluations)
        if added:
            self._any_invalid |= any(e.status == "invalid" for e in added)
            self.last_time = max(self.last_time, *(e.wall_time for e in added))
            self._ordered = self._usual_gap = None
            self._note_failures(added)
        if added or not self.trace.complete:
            self.trace.update(self._by_age, added, more=more)
        return added

    def judge_all(self) -> None:
        """Judge what was put off, too."""
        self.trace.update(self._by_age, [])

    def seen_by(self, rule: str) -> Sequence[Evaluation]:
        """The evaluations a rule looks at, the newest last."""
        if rule in ("degradation", "plateau"):
            return self.trace.evaluations
        return self._in_order() if rule == "non-finite" else self._by_age

    def is_fresh(self, rule: str, added: Sequence[Evaluation], *, first: bool) -> bool:
        """Whether the newest checkpoint a rule looks at has just arrived.

        Args:
            rule: its name.
            added: what :meth:`take_in` returned.
            first: whether nothing was known before.
        """
        if rule == "stale":
            return True
        seen = self.seen_by(rule)
        if not seen or not added:
            return False
        newest = seen[-1]
        if added is not self._by_age and not any(_is(newest, e) for e in added):
            return False
        return not first or newest.seq == self._largest(seen)

    def invalid_streak(self) -> int:
        """How many checkpoints in a row, up to the newest, are not finite or constant."""
        return len(list(_trailing(self._in_order(), "invalid")))

    def is_stale(self, now: float) -> bool:
        """Whether no checkpoint came for longer than the rules allow and than four usual gaps."""
        if not self._stale_seconds or now - self.last_time <= self._stale_seconds:
            return False
        if self._usual_gap is None:
            times = (
                np.array([e.wall_time for e in self._by_age])
                if isinstance(self._by_age, list)
                else self._by_age.wall_times()
            )
            times = np.sort(times[times > 0])
            self._usual_gap = median(np.diff(times)) if len(times) > 1 else math.inf
        return now - self.last_time > 4 * self._usual_gap

    def _new(self, evaluations: Sequence[Evaluation]) -> Sequence[Evaluation]:
        """Those of these evaluations that are new; from now on they are known."""
        if isinstance(self._by_age, list):
            added = [e for e in evaluations if _identity(e) not in self._known]
            for e in added:
                self._known.add(_identity(e))
                bisect.insort(self._by_age, e, key=lambda e: e.seq)
            return added
        if evaluations is self._by_age and not self._newest:
            added = evaluations  # all of a long run, made one by one when they are asked for
        else:
            added = [e for e in evaluations if e.seq > self._newest]
        self._newest = max(self._newest, self._by_age.last_seq if added else 0)
        return added

    def _in_order(self) -> Sequence[Evaluation]:
        """Scored and invalid evaluations in training order; empty as long as none is invalid."""
        if self._ordered is None:
            self._ordered = self._sort() if self._any_invalid else []
        return self._ordered

    def _sort(self) -> Sequence[Evaluation]:
        if isinstance(self._by_age, History):
            return self._by_age.read()
        known = [e for e in self._by_age if e.status != "failed"]
        return [known[row] for row in order(places_of(known)).rows]

    def _note_failures(self, added: Sequence[Evaluation]) -> None:
        """Keep the files that failed since the last success."""
        if len(added) != 1 or not _is(self._by_age[-1], added[0]):
            self._failing = {e.source.path for e in _trailing(self._by_age, "failed")}
        elif added[0].status == "failed":
            self._failing.add(added[0].source.path)
        else:
            self._failing.clear()

    def _largest(self, seen: Sequence[Evaluation]) -> int:
        """The largest sequence number of what a rule looks at."""
        if seen is self._by_age:
            return seen[-1].seq
        if seen is self.trace.evaluations:
            return self.trace.newest
        return seen.last_seq if isinstance(seen, Selection) else max(e.seq for e in seen)


def _identity(evaluation: Evaluation) -> tuple[Any, ...]:
    """What makes an evaluation the same when it is handed in again."""
    if evaluation.seq:
        return (evaluation.seq,)
    source = evaluation.source
    settings = evaluation.settings.fingerprint if evaluation.settings else ""
    return (0, source.path, source.content, source.epoch, source.step, evaluation.status, settings)


def _is(one: Evaluation, other: Evaluation) -> bool:
    """Whether two objects stand for one evaluation: a history makes new ones whenever they are asked for."""
    return one is other or (one.seq != 0 and one.seq == other.seq)


def _trailing(evaluations: Sequence[Evaluation], status: str) -> Iterable[Evaluation]:
    """Those at the end that have a status, the newest first."""
    return itertools.takewhile(lambda e: e.status == status, reversed(evaluations))
