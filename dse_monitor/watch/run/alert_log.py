"""An alert's way out of the watcher: numbered, into the ledger, then to whoever wants to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dse_monitor.runs.ledger import Ledger, next_sequence
from dse_monitor.runs.record import Alert
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.records import Records


class AlertLog:
    """Records and sends the alerts of one run.

    Args:
        context: the run.
        ledger: open for writing.
        records: what is on record; alerts are added to it.
    """

    def __init__(self, context: RunContext, ledger: Ledger, records: Records):
        self._run, self._clock, self._ledger, self._records = context.name, context.clock, ledger, records
        self._last = max((alert.seq for alert in records.alerts), default=0)
        sinks = context.options.sinks
        self._delivery = (
            context.dependencies.outbox(sinks, self._delivered, context.clock.time) if sinks else None
        )

    def restore(self, deliveries: Sequence[dict[str, Any]]) -> None:
        """Send what earlier watchers did not finish; ``deliveries`` are what they recorded about it."""
        if self._delivery is not None:
            self._delivery.restore(self._records.alerts, deliveries)

    def sequence(self) -> int:
        """The number of the next record, whether evaluation or alert."""
        return next_sequence(max(self._records.history.last_seq, self._last), self._clock.time())

    def record(self, alert: Alert) -> Alert:
        """Put an alert into the ledger; returns it with its number."""
        alert = dataclasses.replace(alert, seq=self.sequence(), run=alert.run or self._run)
        self._last = alert.seq
        self._ledger.append_alert(alert)
        self._records.alerts.append(alert)
        return alert

    def send(self, alerts: Sequence[Alert]) -> None:
        """Hand recorded alerts to the sinks; returns at once."""
        if self._delivery is not None:
            for alert in alerts:
                self._delivery.submit(alert)

    def close(self, timeout: float) -> None:
        """Deliver for so many seconds at most; the next watcher sends the rest."""
        if self._delivery is not None:
            self._delivery.close(timeout)

    def _delivered(self, fact: dict[str, Any]) -> None:
        self._ledger.append("delivery", {"delivery": fact})
