"""The alerts of one run: what is true now, what was reported already, and what is worth reporting next.

What is true follows from the evaluations alone, whatever order they came in (evidence.py, trace.py,
status.py). What was reported follows from the alerts in the ledger (reported.py). An alert is the difference
between the two (compose.py), so a restart repeats nothing and forgets nothing, and what a silence or the
hourly limit held back is reported later if it is still true then.

===========  ===========  ===============================================  ================================
rule         kind         fires when                                       ends when
===========  ===========  ===============================================  ================================
degradation  degradation  the drop is real, matters and lasts (rules.py)   the level is back near the best
non-finite   non-finite   the newest checkpoint is not finite or constant  a newer one can be measured
failures     health       three files in a row could not be measured       one can
stale        health       no checkpoint for long                           one comes
plateau      plateau      no progress for long (severity info)             there is some, or a drop
===========  ===========  ===============================================  ================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dse_monitor.alerts.compose import compose
from dse_monitor.alerts.evidence import Evidence
from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.reported import Reported
from dse_monitor.alerts.status import KINDS, Status, statuses
from dse_monitor.runs.history import History
from dse_monitor.runs.record import Alert, Evaluation


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
        self._evidence = Evidence(self.rules, history)
        self._reported = Reported(run, self.rules)
        self._held: set[str] = set()  # rules with a report that may not be made yet
        self._stale = False

    @property
    def states(self) -> dict[str, Status]:
        """Where each rule stands, by name; the same for every order in which the evaluations came."""
        return statuses(self._evidence, self.rules, stale=self._stale)

    def restore(self, alerts: Iterable[Alert], silences: Iterable[Mapping[str, Any]] = ()) -> None:
        """Take up where a former watcher ended.

        Args:
            alerts: what was reported, in that order.
            silences: data of the ledger's ``silence`` facts, in order (see :func:`silences.silence_fact`).
        """
        self._reported.silences.restore(silences, self._reported.restore(alerts))

    @property
    def judged(self) -> int:
        """How many checkpoints were judged."""
        return len(self._evidence.trace.phases)

    def judgements(self) -> dict[str, Any]:
        """What is worth keeping for :meth:`recall`, as plain JSON types."""
        return self._evidence.trace.judged()

    def recall(self, judged: Mapping[str, Any]) -> None:
        """Spare the first :meth:`advance` what an earlier process judged on the same numbers."""
        self._evidence.trace.recall(judged)

    def silence(self, fact: Mapping[str, Any]) -> None:
        """Say nothing about a rule for a time or until it is resolved (see :func:`silences.silence_fact`)."""
        self._reported.silences.add(fact)

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
        evidence, reported = self._evidence, self._reported
        first = evidence.is_empty
        added = evidence.take_in(evaluations, more=more)
        self._stale = evidence.is_stale(now)
        fresh = {rule for rule in KINDS if evidence.is_fresh(rule, added, first=first)} | self._held
        current = self.states
        if not evidence.trace.complete and any(
            reported.due(rule, current[rule], fresh=rule in fresh, now=now) for rule in KINDS
        ):
            evidence.judge_all()  # nothing is said on half of what is known
            current = self.states
        reported.silences.end(current, now)
        alerts = []
        for rule, status in current.items():
            key = reported.due(rule, status, fresh=rule in fresh, now=now)
            if key is None:
                self._held.discard(rule)
            elif reported.may_speak(rule, now):
                self._held.discard(rule)
                alert = compose(key, status, evidence, self.rules, causes=self._causes, now=now)
                reported.note(key, alert, now)
                alerts.append(alert)
            else:
                self._held.add(rule)
        return alerts


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
