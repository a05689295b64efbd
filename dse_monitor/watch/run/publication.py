"""From a recorded evaluation to what others see: event data, best.json, alerts; in this order.

After a restart, what a killed watcher did not get to is published. A disk that takes no more stops none of
the scoring: facts wait in memory (ledger.py), and once there is room the event data is completed from the
ledger.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

from dse_monitor.errors import OutputError
from dse_monitor.runs.ledger import EVALUATIONS, Ledger
from dse_monitor.runs.record import Alert, Evaluation
from dse_monitor.runs.series import Series
from dse_monitor.watch.run.alert_log import AlertLog
from dse_monitor.watch.run.best_checkpoint import BestCheckpoint
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.judgements import JudgementFile
from dse_monitor.watch.run.poller import Poller
from dse_monitor.watch.run.records import EarlierWatches, Records

RECOVER_SECONDS = 10.0  # between attempts to write what could not be written; chosen by us
STATE_SECONDS = 600.0  # between states of the watcher in the event data, which grows with each; chosen by us
CHANGED_SECONDS = 30.0  # the same when it does something else than before; chosen by us


class Publication:
    """Everything of one run that is derived from its ledger.

    Args:
        context: the run.
        ledger: open for writing.
        records: what is on record.
        poller: knows which candidates the last scan saw.

    Attributes:
        due: when :meth:`recover` is to be called, monotonic seconds; never while everything can be written.
    """

    def __init__(self, context: RunContext, ledger: Ledger, records: Records, poller: Poller):
        self._context, self._ledger, self._records = context, ledger, records
        dependencies = context.dependencies
        self._writer = dependencies.writer(context.out)
        self._alerts = dependencies.alerts(context.name, context.options.rules, records.history)
        self._best = BestCheckpoint(context, records, poller)
        self._log = AlertLog(context, ledger, records)
        self._judgements = JudgementFile(context.out, self._alerts)
        about_disk = [alert for alert in records.alerts if "/disk/" in alert.key]
        self._disk_episode = sum(alert.status == "firing" for alert in about_disk)
        self._disk_refuses = bool(about_disk) and about_disk[-1].status == "firing"
        self._behind = False  # whether the event data or best.json lack something
        self._activity: tuple[int, str, str] = (0, "", "")  # queue, current checkpoint, message
        self._state_written = -math.inf
        self.due = context.clock.monotonic() if self._disk_refuses else math.inf

    def resume(self, earlier: EarlierWatches) -> None:
        """Take up where a former watcher ended, and publish what it did not."""
        alerts, history = self._records.alerts, self._records.history
        self._alerts.restore([alert for alert in alerts if alert.kind != "test"], earlier.silences)
        self._log.restore(earlier.deliveries)
        with self._writing():
            self._writer.catch_up(self._recorded(), alerts)
        if len(history):
            self._update_best(history.series())
        self._judgements.load()
        self._publish_alerts(self._alerts.advance(history, now=self._context.clock.time()))
        self._judgements.save()

    def sequence(self) -> int:
        """The number of the next record."""
        return self._log.sequence()

    def add(self, evaluation: Evaluation, *, on_disk: bool, more: bool) -> None:
        """Publish an evaluation that was recorded just now (it is the last of the history).

        Args:
            evaluation: the record.
            on_disk: whether the ledger could write it.
            more: whether others wait to be measured.
        """
        if on_disk:
            with self._writing():
                self._writer.add_evaluation(evaluation)
                self._writer.flush()
        else:
            self._disk_failed(self._ledger.error)
        history, report = self._records.history, self._context.report
        series = history.series()
        self._update_best(series)
        alerts = self._alerts.advance([history[-1]], now=self._context.clock.time(), more=more)
        degradation = next((alert for alert in alerts if alert.kind == "degradation"), None)
        if evaluation.status == "scored":
            kept = self._best.kept(series) if degradation is not None else ""
            report.scored(evaluation, series, self._degradation_in_words(degradation), degradation, kept)
        else:
            report.failed(evaluation)
        self._publish_alerts(alerts, on_console=degradation)

    def remind(self, *, more: bool) -> None:
        """Publish the alerts that fall due by the clock alone; ``more`` as in :meth:`add`."""
        alerts = self._alerts.advance([], now=self._context.clock.time(), more=more)
        if alerts:
            self._publish_alerts(alerts)
        self._judgements.save()

    def silence(self, fact: dict[str, Any]) -> None:
        """Somebody asked for silence (a fact of kind ``silence``)."""
        self._alerts.silence(fact)

    def beat(self, queue: int, current: str, message: str) -> None:
        """Show in the event data that the watcher lives, and what it does; seldom, as the file grows.

        Args:
            queue: checkpoints that wait.
            current: the checkpoint being measured, relative to the run; empty if there is none.
            message: why it waits; empty if it does not.
        """
        activity = (queue, current, message)
        pause = STATE_SECONDS if activity == self._activity else CHANGED_SECONDS
        if self._context.clock.monotonic() - self._state_written >= pause:
            self._activity = activity
            with self._writing():
                self._write_state(alive=True)

    def recover(self) -> None:
        """Try to write what could not be written."""
        self.due = self._context.clock.monotonic() + RECOVER_SECONDS
        if not self._ledger.retry():
            return
        try:
            if self._behind or not self._writer.alive:
                self._writer.reopen(self._recorded(), self._records.alerts, self._state(alive=True))
            self._best.publish(self._records.history.series())
        except (OutputError, OSError):
            return
        self._behind, self._disk_refuses, self.due = False, False, math.inf
        text = f"results can be written to {self._context.out} again; nothing was lost"
        self._context.report.notice(text)
        self._alert_about_disk("resolved", text)

    def close(self, timeout: float) -> None:
        """Deliver alerts for so many seconds, write the last state, close the files."""
        self._log.close(timeout)
        self._judgements.save(least=1)
        with self._writing():
            self._write_state(alive=False)
        with contextlib.suppress(OutputError):
            self._writer.close()

    def drop(self) -> None:
        """Close the files of a folder that is gone."""
        self._log.close(0.0)
        with contextlib.suppress(OutputError):
            self._writer.close()

    def _publish_alerts(self, alerts: Iterable[Alert], *, on_console: Alert | None = None) -> None:
        """Record alerts, put them into the event data, send them.

        Args:
            alerts: in order.
            on_console: the one of them that the console has shown already.
        """
        recorded = []
        for alert in alerts:
            if alert is not on_console:
                self._context.report.alerts([alert])
            recorded.append(self._log.record(alert))
        with self._writing():
            for alert in recorded:
                self._writer.add_alert(alert)
            self._write_state(alive=True)
        self._log.send(recorded)

    def _recorded(self) -> Iterator[Evaluation]:
        """Every evaluation on disk, with stage times and companions."""
        for fact in self._ledger.facts():
            if fact.kind in EVALUATIONS:
                yield fact.evaluation

    def _update_best(self, series: Series) -> None:
        try:
            self._best.update(series)
        except OSError as error:
            self._disk_failed(error)

    def _degradation_in_words(self, alert: Alert | None) -> str:
        """The state of the degradation rule in a few words; ``alert`` is what it has to say now."""
        if alert is not None and alert.status == "resolved":
            return "recovered"
        rule = self._alerts.states["degradation"]
        since = "" if rule.since is None else f" since {rule.since:.10g}"
        if rule.status == "firing":
            return f"{'DEGRADED' if alert is not None else 'degraded'}{since}"
        return f"pending{since}" if rule.status == "pending" else ""

    def _state(self, *, alive: bool) -> dict[str, Any]:
        queue, current, message = self._activity
        watcher = {
            "alive": alive,
            "seen": self._context.clock.time(),
            "every": STATE_SECONDS,
            "queue": queue,
            "current": current,
            "message": message or self._context.report.last_problem,
        }
        return self._context.dependencies.state(
            self._records.history, self._records.alerts, run=self._context.name, watcher=watcher
        )

    def _write_state(self, *, alive: bool) -> None:
        self._state_written = self._context.clock.monotonic()
        self._writer.set_state(self._state(alive=alive))
        self._writer.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OutputError, OSError) as error:
            self._disk_failed(error)

    def _disk_failed(self, error: BaseException | None) -> None:
        """The disk refuses: reported once, tried again later."""
        self._behind = True
        self.due = self._context.clock.monotonic() + RECOVER_SECONDS
        if self._disk_refuses:
            return
        self._disk_refuses = True
        self._disk_episode += 1
        reason = getattr(error, "strerror", None) or str(error)
        text = f"results cannot be written to {self._context.out} ({reason}); scoring goes on in memory"
        self._context.report.problem("", text, "disk")
        self._alert_about_disk("firing", text)

    def _alert_about_disk(self, status: str, text: str) -> None:
        key = f"{self._context.name}/disk/{self._disk_episode}/{status}"
        now = self._context.clock.time()
        alert = Alert(kind="health", status=status, message=text, key=key, wall_time=now)
        alert = self._log.record(alert)
        with contextlib.suppress(OutputError, OSError):
            self._writer.add_alert(alert)
            self._writer.flush()
        self._log.send([alert])
