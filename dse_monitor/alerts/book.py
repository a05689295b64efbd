"""The alerts of one run: what is true now, what was said already, and what is worth saying next.

What is true follows from the evaluations alone, whatever order they came in (trace.py). What was said
follows from the alerts in the ledger. An alert is the difference between the two, so a restart repeats
nothing and forgets nothing, and what a silence or the hourly limit held back is said later if it is still
true then.

    rule          kind          fires when                                       ends when
    degradation   degradation   the drop is real, matters and lasts (rules.py)   the level is back near the
    best non-finite    non-finite    the newest checkpoint is not finite or constant  a newer one can be
    measured failures      health        three files in a row could not be measured       one can
    stale         health        no checkpoint for long                           one comes
    plateau       plateau       no progress for long (severity info)             there is some, or a drop
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dse_monitor.alerts import message
from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.rules import errors, median, shares
from dse_monitor.alerts.trace import Trace
from dse_monitor.runs.history import History, Selection, series_of
from dse_monitor.runs.record import Alert, Evaluation
from dse_monitor.runs.series import Series, position

KINDS = {
    "degradation": "degradation",
    "non-finite": "non-finite",
    "failures": "health",
    "stale": "health",
    "plateau": "plateau",
}
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where one rule stands.

    Attributes:
        status: ``inactive``, ``pending``, ``firing`` or ``resolved``.
        severity: ``info``, ``warning`` or ``critical``.
        since: position from which it counts, on the run's axis; None if it does not apply.
        streak: checkpoints in a row that speak for it.
        unknown: the newest checkpoint could not be measured, so this is what was true before it.
    """

    status: str = "inactive"
    severity: str = "warning"
    since: float | None = None
    streak: int = 0
    unknown: bool = False


@dataclass
class _Said:
    """What was told about one rule."""

    episode: int = 0
    firing: bool = False
    severity: str = ""
    at: float = -math.inf
    reminders: int = 0


@dataclass(frozen=True)
class _Silence:
    rule: str
    until: float | None  # None: until resolved


class AlertBook:
    """The alerts of one run.

    Args:
        run: the run's name.
        rules: when to speak.
        causes: whether the terms of DSE are known, so that a cause can be named.
        history: where the caller keeps the evaluations; those handed to :meth:`advance` are in it already.
            If None, they are kept here.
    """

    def __init__(
        self,
        run: str,
        rules: Rules | None = None,
        *,
        causes: bool = True,
        history: History | None = None,
    ):
        self.run = run
        self.rules = rules or Rules()
        self._causes = causes
        self._history = history
        self._known: set[tuple[Any, ...]] = set()  # of those kept here
        self._newest = 0  # sequence number of the newest known, where the caller keeps them
        self._by_age: list[Evaluation] | History = [] if history is None else history
        self._ordered: Sequence[Evaluation] | None = None
        self._failing: set[str] = set()  # paths of the files that failed since the last success
        self._usual_gap: float | None = None
        self._any_invalid = False
        self._last_time = -math.inf
        self._trace = Trace(self.rules)
        self._said = {rule: _Said() for rule in KINDS}
        self._sent: list[float] = []
        self._held: set[str] = set()
        self._silences: list[_Silence] = []
        self._was_firing: set[str] = set()
        self._stale = False

    @property
    def states(self) -> dict[str, Status]:
        """Where each rule stands, by name; the same for every order in which the evaluations came."""
        return self._current()

    def restore(self, alerts: Iterable[Alert], silences: Iterable[Mapping[str, Any]] = ()) -> None:
        """Take up where a former watcher ended.

        Args:
            alerts: what was said, in the order it was said.
            silences: data of the ledger's ``silence`` facts, in order (see :func:`silence_fact`).
        """
        ended: dict[str, float] = {}
        for alert in alerts:
            if alert.kind == "test":
                continue
            rule, episode, status = _parse(alert)
            said = self._said.get(rule)
            if said is None:
                continue
            said.episode = max(episode, said.episode)
            said.firing = alert.status == "firing"
            said.severity, said.at = alert.severity, alert.wall_time
            said.reminders = said.reminders + 1 if "reminder" in status else 0
            self._sent.append(alert.wall_time)
            if alert.status == "resolved":
                ended[rule] = alert.wall_time
        for fact in silences:
            rule, since = str(fact["rule"]), float(fact.get("since", 0.0))
            over = [t for name, t in ended.items() if rule in (name, "all")]
            if fact.get("until") is not None or not any(t >= since for t in over):
                self.silence(fact)

    @property
    def judged(self) -> int:
        """How many checkpoints were judged."""
        return len(self._trace.phases)

    def judgements(self) -> dict[str, Any]:
        """What is worth keeping for :meth:`recall`, as plain JSON types."""
        return self._trace.judged()

    def recall(self, judged: Mapping[str, Any]) -> None:
        """Spare the first :meth:`advance` what an earlier process judged on the same numbers."""
        self._trace.recall(judged)

    def silence(self, fact: Mapping[str, Any]) -> None:
        """Say nothing about a rule for a time or until it is resolved (see :func:`silence_fact`)."""
        rule, until = str(fact["rule"]), fact.get("until")
        if until is not None and float(until) <= float(fact.get("since", 0.0)):
            self._silences = [s for s in self._silences if rule not in (s.rule, "all")]
        else:
            self._silences.append(_Silence(rule, None if until is None else float(until)))

    def advance(self, evaluations: Sequence[Evaluation], *, now: float, more: bool = False) -> list[Alert]:
        """Take in evaluations and return what is worth saying about it.

        Only a checkpoint beyond all others so far makes an alert; older ones, measured later, complete the
        picture silently. Call it now and then without evaluations for reminders and the hourly limit.

        Args:
            evaluations: new ones, or all there are: those known already change nothing.
            now: seconds since 1970.
            more: whether others will follow soon. What older checkpoints change may then be judged later,
                with the last of them or with the next alert.
        """
        first = not self._known and not self._newest
        added = self._take_in(evaluations)
        if added:
            self._any_invalid |= any(e.status == "invalid" for e in added)
            self._last_time = max(self._last_time, *(e.wall_time for e in added))
            self._ordered = self._usual_gap = None
            self._note_failures(added)
        if added or not self._trace.complete:
            self._trace.update(self._by_age, added, more=more)
        self._stale = self._is_stale(now)
        fresh = {rule for rule in KINDS if self._is_fresh(rule, added, first)} | self._held
        current = self._current()
        if not self._trace.complete and any(
            self._next(rule, current[rule], rule in fresh, now) for rule in KINDS
        ):
            self._trace.update(self._by_age, [])  # nothing is said on half of what is known
            current = self._current()
        self._end_silences(current, now)
        told = []
        for rule, status in current.items():
            alert = self._next(rule, status, rule in fresh, now)
            if alert is None:
                self._held.discard(rule)
            elif self._may_speak(rule, now):
                self._held.discard(rule)
                self._note(rule, alert, now)
                told.append(alert)
            else:
                self._held.add(rule)
        return told

    def _take_in(self, evaluations: Sequence[Evaluation]) -> Sequence[Evaluation]:
        """Those of these evaluations that are new."""
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

    # What is true.

    def _current(self) -> dict[str, Status]:
        phase, x = self._trace.phase, self._trace.x
        unknown = self._newest_failed()
        invalid, failed = self._invalid_streak(), len(self._failing)
        plateau = phase.plateau and phase.status not in ("pending", "firing")
        return {
            "degradation": Status(
                status=phase.status,
                severity=phase.severity,
                since=None if phase.since is None else float(x[phase.since]),
                streak=phase.streak,
                unknown=unknown,
            ),
            "non-finite": Status(
                status="firing" if invalid else "inactive",
                severity="critical",
                streak=invalid,
                unknown=unknown,
            ),
            "failures": Status(
                status="firing" if failed >= self.rules.failures else "pending" if failed else "inactive",
                streak=failed,
            ),
            "stale": Status(status="firing" if self._stale else "inactive"),
            "plateau": Status(status="firing" if plateau else "inactive", severity="info", unknown=unknown),
        }

    def _newest_failed(self) -> bool:
        return bool(self._by_age) and self._by_age[-1].status == "failed"

    def _in_order(self) -> Sequence[Evaluation]:
        """Scored and invalid evaluations in training order; empty as long as none is invalid."""
        if self._ordered is None:
            self._ordered = self._sort() if self._any_invalid else []
        return self._ordered

    def _sort(self) -> Sequence[Evaluation]:
        axis = self._trace.axis
        if isinstance(self._by_age, History):
            return self._by_age.read(axis)
        known = [e for e in self._by_age if e.status != "failed"]
        if axis == "order" or any(
            (e.source.epoch if axis == "epoch" else e.source.step) is None for e in known
        ):
            return known
        return sorted({position(e, axis): e for e in known}.values(), key=lambda e: position(e, axis))

    def _invalid_streak(self) -> int:
        return len(list(_trailing(self._in_order(), "invalid")))

    def _note_failures(self, added: Sequence[Evaluation]) -> None:
        """Keep the files that failed since the last success; one that fails again and again counts once."""
        if len(added) != 1 or not _is(self._by_age[-1], added[0]):
            self._failing = {e.source.path for e in _trailing(self._by_age, "failed")}
        elif added[0].status == "failed":
            self._failing.add(added[0].source.path)
        else:
            self._failing.clear()

    def _is_stale(self, now: float) -> bool:
        if not self.rules.stale_seconds or now - self._last_time <= self.rules.stale_seconds:
            return False
        if self._usual_gap is None:
            times = (
                np.array([e.wall_time for e in self._by_age])
                if isinstance(self._by_age, list)
                else self._by_age.wall_times()
            )
            times = np.sort(times[times > 0])
            self._usual_gap = median(np.diff(times)) if len(times) > 1 else math.inf
        return now - self._last_time > 4 * self._usual_gap

    # What to say.

    def _is_fresh(self, rule: str, added: Sequence[Evaluation], first: bool) -> bool:
        """Whether the newest checkpoint a rule looks at has just arrived."""
        if rule == "stale":
            return True
        line = self._line(rule)
        if not line or not added:
            return False
        newest = line[-1]
        if added is not self._by_age and not any(_is(newest, e) for e in added):
            return False
        return not first or newest.seq == self._largest(line)

    def _largest(self, line: Sequence[Evaluation]) -> int:
        """The largest sequence number of a line."""
        if line is self._by_age:
            return line[-1].seq
        if line is self._trace.evaluations:
            return self._trace.newest
        return line.last_seq if isinstance(line, Selection) else max(e.seq for e in line)

    def _next(self, rule: str, status: Status, fresh: bool, now: float) -> Alert | None:
        said = self._said[rule]
        if status.status == "firing":
            if not said.firing:
                return self._alert(rule, status, "firing", said.episode + 1, now) if fresh else None
            if status.severity == "critical" != said.severity:
                return self._alert(rule, status, "firing-critical", said.episode, now) if fresh else None
            due = self.rules.remind_seconds and now - said.at >= self.rules.remind_seconds
            if due and status.severity != "info":
                mark = f"firing-reminder-{said.reminders + 1}"
                return self._alert(rule, status, mark, said.episode, now)
            return None
        if said.firing and fresh:
            return self._alert(rule, status, "resolved", said.episode, now)
        return None

    def _may_speak(self, rule: str, now: float) -> bool:
        if any(s.rule in (rule, "all") and (s.until is None or now < s.until) for s in self._silences):
            return False
        self._sent = [t for t in self._sent if t > now - HOUR]
        return len(self._sent) < self.rules.per_hour

    def _note(self, rule: str, alert: Alert, now: float) -> None:
        said = self._said[rule]
        _, said.episode, mark = _parse(alert)
        said.firing, said.severity, said.at = alert.status == "firing", alert.severity, now
        said.reminders = said.reminders + 1 if "reminder" in mark else 0
        self._sent.append(now)

    def _end_silences(self, current: Mapping[str, Status], now: float) -> None:
        firing = {rule for rule, status in current.items() if status.status == "firing"}
        over = self._was_firing - firing
        self._was_firing = firing
        self._silences = [
            s
            for s in self._silences
            if (now < s.until if s.until is not None else not (s.rule in over or (s.rule == "all" and over)))
        ]

    def _alert(self, rule: str, status: Status, mark: str, episode: int, now: float) -> Alert:
        key = f"{self.run}/{rule}/{episode}/{mark}"
        series = series_of(self._trace.evaluations, lam=self.rules.lam)
        newest = next(reversed(self._line(rule)), None)
        best = series.evaluations[series.best].source if series.best is not None else None
        alert = Alert(
            kind=KINDS[rule],
            status=mark.split("-")[0],
            severity=status.severity,
            run=self.run,
            epoch=newest.source.epoch if newest else None,
            step=newest.source.step if newest else None,
            since=status.since,
            axis=series.axis,
            best_at=float(series.x[series.best]) if series.best is not None else None,
            best_path=best.path if best else "",
            layout=best.layout if best else "",
            lam=series.lam,
            key=key,
            wall_time=now,
        )
        still = "reminder" in mark
        if rule == "degradation":
            return self._with_drop(alert, series, still=still)
        return dataclasses.replace(alert, message=self._story(rule, status, alert, newest, now))

    def _line(self, rule: str) -> Sequence[Evaluation]:
        """The evaluations a rule looks at, the newest last."""
        if rule in ("degradation", "plateau"):
            return self._trace.evaluations
        return self._in_order() if rule == "non-finite" else self._by_age

    def _with_drop(self, alert: Alert, series: Series, *, still: bool) -> Alert:
        assert series.best is not None
        best, last = series.best, len(series) - 1
        sigma = np.where(
            np.isfinite(series.dse_se), series.dse_se, errors(series.x, series.dse, series.dse_se)
        )
        drop_se = math.hypot(sigma[best], sigma[last])
        part, cause = shares(
            float(series.separability[best] - series.separability[last]),
            float(series.m_dim[best] - series.m_dim[last]),
            series.lam,
        )
        alert = dataclasses.replace(
            alert,
            drop=float(series.dse[best] - series.dse[last]),
            drop_se=drop_se if math.isfinite(drop_se) else math.nan,
            shares=part if self._causes else {},
            cause=cause if self._causes else "",
        )
        return dataclasses.replace(
            alert, message=message.degradation(alert, float(series.x[last]), still=still)
        )

    def _story(self, rule: str, status: Status, alert: Alert, newest: Evaluation | None, now: float) -> str:
        path = newest.source.path if newest else "the newest checkpoint"
        reason = newest.reason if newest else ""
        ended = alert.status == "resolved"
        if rule == "non-finite":
            if ended:
                return f"{path} could be measured again."
            return f"{path} cannot be measured: {reason or 'weights or features are not finite or constant'}"
        if rule == "failures":
            if ended:
                return f"{path} could be measured again."
            return f"{status.streak} checkpoints in a row could not be measured; the last is {path}: {reason}"
        if rule == "stale":
            if ended:
                return f"A new checkpoint came: {path}."
            hours = (now - self._last_time) / HOUR
            return (
                f"No new checkpoint for {hours:.1f} hours; the last is {path}. Has the run ended or stopped?"
            )
        place = message.place(alert.axis, float(self._trace.x[-1]))
        if ended:
            return f"DSE moves again at {place}."
        return f"DSE has made no progress for {self.rules.plateau} checkpoints, up to {place}."


def silence_fact(rule: str, *, now: float, seconds: float | None = None) -> dict[str, Any]:
    """Data of a ledger fact of kind ``silence``.

    Args:
        rule: a rule's name, or ``all``.
        now: seconds since 1970.
        seconds: how long; None until the alert is resolved, 0 to take back silences of this rule.

    Raises:
        ValueError: there is no such rule, or the time is negative.
    """
    if rule not in (*KINDS, "all"):
        raise ValueError(f"there is no rule {rule!r}; there are {', '.join(KINDS)} and all")
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"a silence lasts a time that is not negative, found {seconds} s")
    return {"rule": rule, "since": now, "until": None if seconds is None else now + seconds}


def test_alert(run: str, *, now: float) -> Alert:
    """An alert that says it is a test, to see whether the sinks work."""
    return Alert(
        kind="test",
        status="firing",
        severity="info",
        run=run,
        message="This is a test of the alert sinks; nothing is wrong with the run.",
        key=f"{run}/test/{int(now * 1e6)}/firing",
        wall_time=now,
    )


# pyright: ignore[reportFunctionMemberAccess]  # its name looks like a test to pytest
def _identity(evaluation: Evaluation) -> tuple[Any, ...]:
    """What makes an evaluation the same when it is handed in again."""
    if evaluation.seq:
        return (evaluation.seq,)
    source = evaluation.source
    settings = evaluation.settings.fingerprint if evaluation.settings else ""
    return (0, source.path, source.content, source.epoch, source.step, evaluation.status, settings)


def _is(one: Evaluation, other: Evaluation) -> bool:
    """Whether two objects stand for one evaluation: a history makes them anew whenever they are asked for."""
    return one is other or (one.seq != 0 and one.seq == other.seq)


def _parse(alert: Alert) -> tuple[str, int, str]:
    """Rule, episode and mark of a key written by :class:`AlertBook`."""
    try:
        _, rule, episode, mark = alert.key.rsplit("/", 3)
        return rule, int(episode), mark
    except ValueError:
        return alert.kind, 1, alert.status


def _trailing(evaluations: Sequence[Evaluation], status: str) -> Iterable[Evaluation]:
    """Those at the end that have a status, the newest first."""
    return itertools.takewhile(lambda e: e.status == status, reversed(evaluations))
