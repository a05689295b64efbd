"""From a recorded evaluation to what others see: event data, best.json, alerts; in this order.

After a restart, what a killed watcher did not get to is published. A disk that takes no more stops none of
the scoring: facts wait in memory (ledger.py), and once there is room the event data is completed from the
ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dse_monitor import atomic
from dse_monitor.errors import OutputError
from dse_monitor.publish import best
from dse_monitor.runs.history import History
from dse_monitor.runs.ledger import EVALUATIONS, Ledger, next_sequence
from dse_monitor.runs.record import Alert, Evaluation
from dse_monitor.runs.series import Series
from dse_monitor.watch.dependencies import Clock, Parts
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.run.report import Report

RECOVER_SECONDS = 10.0  # between attempts to write what could not be written; ours
SEEN_SECONDS = 600.0  # between words of the watcher in the event data, which grows with each; ours
CHANGED_SECONDS = 30.0  # the same when it does something else than before; ours
JUDGED = "judged.json"  # below the output folder: judgements that the next start need not make again
JUDGED_EVERY = 500  # checkpoints judged since it was last written; at the end it is written anyway; ours


class Publication:
    """Everything of one run that is derived from its ledger.

    Args:
        folder: the run's folder.
        out: its output folder.
        name: how the run is called.
        options: what is asked for.
        parts: what it is made with.
        clock: the time.
        ledger: open for writing.
        history: the evaluations on record.
        alerts: the alerts on record.
        report: says things.
        locate: see best.describe.
        cancelled: whether the watcher is asked to end.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        name: str,
        options: WatchOptions,
        parts: Parts,
        clock: Clock,
        ledger: Ledger,
        history: History,
        alerts: list[Alert],
        report: Report,
        locate: Callable[[Evaluation], str | None],
        cancelled: Callable[[], bool],
    ):
        self._folder, self._out, self._name = folder, out, name
        self._parts, self._clock, self._ledger = parts, clock, ledger
        self._history, self._alerts, self._report, self._locate = history, alerts, report, locate
        self._writer = parts.writer(out)
        self._book = parts.book(name, options.rules, history)
        self._keeper = best.Keeper(folder, out, options.keep_best, parts.is_rolling, cancelled=cancelled)
        self._outbox: Any = None
        if options.sinks:
            self._outbox = parts.outbox(options.sinks, self._delivered, clock.time)
        self._last_alert = max((alert.seq for alert in alerts), default=0)
        disk = [alert for alert in alerts if "/disk/" in alert.key]
        self._episode = sum(alert.status == "firing" for alert in disk)
        self._blocked = bool(disk) and disk[-1].status == "firing"
        self._behind = False
        self._doing: tuple[int, str, str] = (0, "", "")
        self._seen = -math.inf
        self._judged = 0  # checkpoints whose judgements lie in JUDGED
        self.due = clock.monotonic() if self._blocked else math.inf

    def resume(self, silences: Sequence[dict[str, Any]], deliveries: Sequence[dict[str, Any]]) -> None:
        """Take up where a former watcher ended, and publish what it did not."""
        self._book.restore([alert for alert in self._alerts if alert.kind != "test"], silences)
        if self._outbox is not None:
            self._outbox.restore(self._alerts, deliveries)
        with self._writing():
            self._writer.catch_up(self._recorded(), self._alerts)
        if len(self._history):
            self._publish_best(self._history.series())
        with contextlib.suppress(OSError, ValueError):
            self._book.recall(json.loads((self._out / JUDGED).read_bytes()))
        self.tell(self._book.advance(self._history, now=self._clock.time()))
        self._save_judged(JUDGED_EVERY)

    def sequence(self) -> int:
        """The number of the next record."""
        return next_sequence(max(self._history.last_seq, self._last_alert), self._clock.time())

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
            self._block(self._ledger.error)
        line = self._history.series()
        self._publish_best(line)
        told = self._book.advance([self._history[-1]], now=self._clock.time(), more=more)
        degradation = next((alert for alert in told if alert.kind == "degradation"), None)
        if evaluation.status == "scored":
            kept = self._kept_best(line) if degradation is not None else ""
            self._report.scored(evaluation, line, self._mark(degradation), degradation, kept)
        else:
            self._report.failed(evaluation)
        self.tell(told, shown=degradation)

    def remind(self, *, more: bool) -> None:
        """Let the alerts look at the clock; ``more`` as in :meth:`add`."""
        told = self._book.advance([], now=self._clock.time(), more=more)
        if told:
            self.tell(told)
        self._save_judged(JUDGED_EVERY)

    def tell(self, alerts: Iterable[Alert], *, shown: Alert | None = None) -> None:
        """Record alerts, put them into the event data, hand them on; ``shown`` is on the console already."""
        said = []
        for alert in alerts:
            if alert is not shown:
                self._report.alerts([alert])
            said.append(self._record(alert))
        with self._writing():
            for alert in said:
                self._writer.add_alert(alert)
            self._write_state(alive=True)
        self._send(said)

    def beat(self, queue: int, current: str, message: str) -> None:
        """Let the event data know that the watcher lives, and what it does; seldom, as the file grows."""
        doing = (queue, current, message)
        pause = SEEN_SECONDS if doing == self._doing else CHANGED_SECONDS
        if self._clock.monotonic() - self._seen >= pause:
            self._doing = doing
            with self._writing():
                self._write_state(alive=True)

    def recover(self) -> None:
        """Try to write what could not be written."""
        self.due = self._clock.monotonic() + RECOVER_SECONDS
        if not self._ledger.retry():
            return
        try:
            if self._behind or not self._writer.alive:
                self._writer.reopen(self._recorded(), self._alerts, self._state(alive=True))
            line = self._history.series()
            best.publish(self._out, self._folder, self._best(line))
        except (OutputError, OSError):
            return
        self._behind, self._blocked, self.due = False, False, math.inf
        text = f"results can be written to {self._out} again; nothing was lost"
        self._report.notice(text)
        self._tell_disk("resolved", text)

    def close(self, timeout: float) -> None:
        """Deliver for so many seconds, write the last word, close the files."""
        if self._outbox is not None:
            self._outbox.close(timeout)
        self._save_judged(1)
        with self._writing():
            self._write_state(alive=False)
        with contextlib.suppress(OutputError):
            self._writer.close()

    def drop(self) -> None:
        """Close the files of a folder that is gone."""
        if self._outbox is not None:
            self._outbox.close(0.0)
        with contextlib.suppress(OutputError):
            self._writer.close()

    def keeps(self, evaluation: Evaluation) -> bool:
        """Whether there is a kept file of an evaluation."""
        return self._keeper.path(evaluation.seq) is not None

    def _save_judged(self, least: int) -> None:
        """Keep the judgements if there are so many new ones. Without them a start only takes longer."""
        count = self._book.judged
        if abs(count - self._judged) >= least:
            with contextlib.suppress(OSError):
                atomic.write_text(self._out / JUDGED, json.dumps(self._book.judgements()) + "\n")
                self._judged = count

    def silence(self, fact: dict[str, Any]) -> None:
        """Somebody asked for silence (a fact of kind ``silence``)."""
        self._book.silence(fact)

    def _recorded(self) -> Iterator[Evaluation]:
        """Every evaluation on disk, with stage times and companions."""
        for fact in self._ledger.facts():
            if fact.kind in EVALUATIONS:
                yield fact.evaluation

    def _record(self, alert: Alert) -> Alert:
        alert = dataclasses.replace(alert, seq=self.sequence(), run=alert.run or self._name)
        self._last_alert = alert.seq
        self._ledger.append_alert(alert)
        self._alerts.append(alert)
        return alert

    def _send(self, alerts: Sequence[Alert]) -> None:
        if self._outbox is not None:
            for alert in alerts:
                self._outbox.submit(alert)

    def _delivered(self, fact: dict[str, Any]) -> None:
        self._ledger.append("delivery", {"delivery": fact})

    def _best(self, line: Series) -> dict[str, Any]:
        return best.describe(self._folder, line, self._locate, self._keeper.path)

    def _publish_best(self, line: Series) -> None:
        try:
            self._keeper.update(line, self._locate)
            if self._keeper.problem:
                self._report.once(self._keeper.problem, self._keeper.problem)
            best.publish(self._out, self._folder, self._best(line))
        except OSError as error:
            self._block(error)

    def _kept_best(self, line: Series) -> str:
        kept = self._keeper.path(line.evaluations[line.best].seq) if line.best is not None else None
        return str(kept) if kept is not None else ""

    def _mark(self, told: Alert | None) -> str:
        """The state of the degradation rule in a few words."""
        if told is not None and told.status == "resolved":
            return "recovered"
        status = self._book.states["degradation"]
        since = "" if status.since is None else f" since {status.since:g}"
        if status.status == "firing":
            return f"{'DEGRADED' if told is not None else 'degraded'}{since}"
        return f"pending{since}" if status.status == "pending" else ""

    def _state(self, *, alive: bool) -> dict[str, Any]:
        watcher = {
            "alive": alive,
            "seen": self._clock.time(),
            "every": SEEN_SECONDS,
            "queue": self._doing[0],
            "current": self._doing[1],
            "message": self._doing[2] or self._report.last_problem,
        }
        return self._parts.state(self._history, self._alerts, run=self._name, watcher=watcher)

    def _write_state(self, *, alive: bool) -> None:
        self._seen = self._clock.monotonic()
        self._writer.set_state(self._state(alive=alive))
        self._writer.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OutputError, OSError) as error:
            self._block(error)

    def _block(self, error: BaseException | None) -> None:
        """The disk refuses: said once, tried again later."""
        self._behind = True
        self.due = self._clock.monotonic() + RECOVER_SECONDS
        if self._blocked:
            return
        self._blocked = True
        self._episode += 1
        reason = getattr(error, "strerror", None) or str(error)
        text = f"results cannot be written to {self._out} ({reason}); scoring goes on in memory"
        self._report.problem("", text, "disk")
        self._tell_disk("firing", text)

    def _tell_disk(self, status: str, text: str) -> None:
        key = f"{self._name}/disk/{self._episode}/{status}"
        alert = Alert(kind="health", status=status, message=text, key=key, wall_time=self._clock.time())
        alert = self._record(alert)
        with contextlib.suppress(OutputError, OSError):
            self._writer.add_alert(alert)
            self._writer.flush()
        self._send([alert])
