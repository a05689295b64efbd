"""What was reported about each rule, and so what is worth reporting next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dse_monitor.alerts.keys import AlertKey, Change
from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.silences import Silences
from dse_monitor.alerts.status import KINDS, Status
from dse_monitor.runs.record import Alert

HOUR = 3600.0


@dataclass
class _Reported:
    """What was reported about one rule."""

    episode: int = 0
    firing: bool = False
    severity: str = ""
    at: float = -math.inf
    reminders: int = 0


class Reported:
    """What was reported about one run. An alert is the difference between this and what is true.

    Args:
        run: the run's name.
        rules: when to remind, and how much may be said in an hour.

    Attributes:
        silences: rules about which nothing is said for now.
    """

    def __init__(self, run: str, rules: Rules) -> None:
        self.silences = Silences()
        self._run, self._rules = run, rules
        self._by_rule = {rule: _Reported() for rule in KINDS}
        self._sent: list[float] = []

    def restore(self, alerts: Iterable[Alert]) -> Mapping[str, float]:
        """Take in what an earlier watcher reported, in that order.

        Returns:
            When each rule was last reported as resolved, s since 1970.
        """
        resolved: dict[str, float] = {}
        for alert in alerts:
            if alert.kind == "test":
                continue
            key = AlertKey.of(alert)
            if key.rule not in self._by_rule:
                continue
            self._note(key, alert, alert.wall_time, max(key.episode, self._by_rule[key.rule].episode))
            if alert.status == "resolved":
                resolved[key.rule] = alert.wall_time
        return resolved

    def due(self, rule: str, status: Status, *, fresh: bool, now: float) -> AlertKey | None:
        """What there is to report about a rule; None if there is nothing.

        Args:
            rule: its name.
            status: where it stands.
            fresh: whether the newest checkpoint it looks at has just arrived. Reminders do not ask for it.
            now: seconds since 1970.
        """
        before = self._by_rule[rule]
        change, episode, reminder = None, before.episode, 0
        if status.status != "firing":
            change = Change.RESOLVED if before.firing and fresh else None
        elif not before.firing:
            change, episode = Change.FIRING if fresh else None, episode + 1
        elif status.severity == "critical" and before.severity != "critical":
            change = Change.CRITICAL if fresh else None
        elif status.severity != "info" and self._is_reminder_due(before, now):
            change, reminder = Change.REMINDER, before.reminders + 1
        if change is None:
            return None
        return AlertKey(run=self._run, rule=rule, episode=episode, change=change, reminder=reminder)

    def may_speak(self, rule: str, now: float) -> bool:
        """Whether neither a silence nor the hourly limit forbids a message about a rule."""
        if self.silences.cover(rule, now):
            return False
        self._sent = [t for t in self._sent if t > now - HOUR]
        return len(self._sent) < self._rules.per_hour

    def note(self, key: AlertKey, alert: Alert, now: float) -> None:
        """Remember that an alert is being reported."""
        self._note(key, alert, now, key.episode)

    def _note(self, key: AlertKey, alert: Alert, at: float, episode: int) -> None:
        reported = self._by_rule[key.rule]
        reported.episode = episode
        reported.firing, reported.severity, reported.at = alert.status == "firing", alert.severity, at
        if key.change is Change.REMINDER:
            reported.reminders += 1
        elif key.change is Change.FIRING:  # an episode begins; one that grows critical keeps counting
            reported.reminders = 0
        self._sent.append(at)

    def _is_reminder_due(self, before: _Reported, now: float) -> bool:
        return bool(self._rules.remind_seconds) and now - before.at >= self._rules.remind_seconds
