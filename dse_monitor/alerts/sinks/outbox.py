"""Alerts on their way out: at least once to every sink, in order, however long that takes.

Each sink has a line and a thread of its own, so one that hangs delays no other, and none delays scoring.
What was delivered is recorded; after a restart the rest is sent again. An alert that was delivered in the
very moment the watcher died is sent twice: receivers can tell by its key.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dse_monitor.alerts.sinks.delivery import SEVERITIES, Refused, Retry, Sink
from dse_monitor.errors import DSEError
from dse_monitor.runs.record import Alert

FIRST_WAIT = 5.0  # s before the second attempt; doubled each time; ours
LONGEST_WAIT = 600.0  # s between attempts at most, unless the other side asks for more
GIVE_UP = 86400.0  # s after the alert was submitted

LOGGER = logging.getLogger("dse_monitor.alerts")


@dataclass
class _Letter:
    alert: Alert
    since: float
    due: float
    attempts: int = 0


class Outbox:
    """Delivers alerts to sinks in the background.

    Args:
        sinks: where alerts go; names must differ.
        record: called with one dict for each alert and sink that is done, from the sink's thread: ``event``
            (``delivered``, ``refused`` or ``gave-up``), ``key``, ``sink``, ``attempts``, ``reason``.
        clock: seconds since 1970.
        jitter: random numbers in [0, 1) that keep many watchers from knocking at the same moment.
        threads: whether to deliver in the background; without, call :meth:`deliver_due`.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        record: Callable[[dict[str, Any]], object],
        clock: Callable[[], float] = time.time,
        *,
        jitter: Callable[[], float] = random.random,
        threads: bool = True,
    ):
        names = [sink.name for sink in sinks]
        if len(set(names)) < len(names):
            raise ValueError(f"two sinks have one name: {', '.join(sorted(names))}")
        self._lanes = [_Lane(sink, record, clock, jitter) for sink in sinks]
        self._clock = clock
        if threads:
            for lane in self._lanes:
                lane.start()

    def restore(self, alerts: Iterable[Alert], facts: Iterable[Mapping[str, Any]]) -> None:
        """Send again what a former watcher did not finish.

        Args:
            alerts: those in the ledger, in order; they are given up a day after their ``wall_time``.
            facts: what was recorded before.
        """
        done = {(fact.get("key"), fact.get("sink")) for fact in facts}
        for alert in alerts:
            for lane in self._lanes:
                if (alert.key, lane.sink.name) not in done and self._clock() - alert.wall_time < GIVE_UP:
                    lane.add(alert, alert.wall_time)

    def submit(self, alert: Alert) -> None:
        """Send an alert to every sink that wants to know; returns at once."""
        for lane in self._lanes:
            lane.add(alert, self._clock())

    def deliver_due(self) -> float | None:
        """Attempt every delivery that is due now.

        Returns:
            Seconds until the next attempt; None when nothing is left.
        """
        for lane in self._lanes:
            while lane.attempt():
                pass
        waits = [wait for lane in self._lanes if (wait := lane.wait()) is not None]
        return min(waits, default=None)

    @property
    def waiting(self) -> int:
        """Deliveries not yet done."""
        return sum(len(lane.letters) for lane in self._lanes)

    def close(self, timeout: float = 5.0) -> None:
        """Let deliveries under way finish for ``timeout`` seconds; the rest is for the next watcher."""
        end = time.monotonic() + timeout
        for lane in self._lanes:
            lane.stop()
        for lane in self._lanes:
            lane.join(max(end - time.monotonic(), 0.0))


class _Lane:
    """The letters to one sink, in order. The first that cannot be delivered holds up the rest."""

    def __init__(
        self,
        sink: Sink,
        record: Callable[[dict[str, Any]], object],
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ):
        self.sink = sink
        self.letters: deque[_Letter] = deque()
        self._keys: set[str] = set()
        self._record, self._clock, self._jitter = record, clock, jitter
        self._change = threading.Condition()
        self._stopping = False
        self._failing = ""
        self._thread: threading.Thread | None = None

    def add(self, alert: Alert, since: float) -> None:
        grave = SEVERITIES.index(alert.severity) >= SEVERITIES.index(self.sink.least)
        if not grave and alert.kind != "test":
            return
        with self._change:
            if alert.key not in self._keys:
                self._keys.add(alert.key)
                self.letters.append(_Letter(alert, since, self._clock()))
                self._change.notify()

    def wait(self) -> float | None:
        """Seconds until the first letter is due."""
        with self._change:
            return max(self.letters[0].due - self._clock(), 0.0) if self.letters else None

    def attempt(self) -> bool:
        """Try the first letter if it is due; whether it left the line."""
        with self._change:
            if not self.letters or self.letters[0].due > self._clock():
                return False
            letter = self.letters[0]
        letter.attempts += 1
        try:
            self.sink(letter.alert)
        except Refused as error:
            LOGGER.error("%s refused an alert (%s): %s", self.sink.name, letter.alert.key, error)
            self._done(letter, "refused", str(error))
            return True
        except Retry as error:
            return self._later(letter, str(error), error.after)
        except DSEError as error:  # its secret is missing or malformed, which can be mended while we run
            return self._later(letter, str(error), None)
        except Exception as error:  # a sink of somebody else's making must not end the thread
            return self._later(letter, type(error).__name__, None)
        if self._failing:
            LOGGER.info("%s works again", self.sink.name)
            self._failing = ""
        self._done(letter, "delivered", "")
        return True

    def _later(self, letter: _Letter, reason: str, asked: float | None) -> bool:
        now = self._clock()
        if now - letter.since >= GIVE_UP:
            LOGGER.error("%s: gave up on an alert (%s): %s", self.sink.name, letter.alert.key, reason)
            self._done(letter, "gave-up", reason)
            return True
        if self._failing != reason:  # said once, not at every attempt
            LOGGER.warning("%s does not take alerts (%s); trying again for a day", self.sink.name, reason)
            self._failing = reason
        wait = min(FIRST_WAIT * 2 ** min(letter.attempts - 1, 30), LONGEST_WAIT)
        wait = min(max(wait * (0.75 + 0.5 * self._jitter()), FIRST_WAIT), LONGEST_WAIT)
        letter.due = now + min(max(wait, asked or 0.0), GIVE_UP)
        return False

    def _done(self, letter: _Letter, event: str, reason: str) -> None:
        fact = {"event": event, "key": letter.alert.key, "sink": self.sink.name, "attempts": letter.attempts}
        try:
            self._record({**fact, "reason": reason})
        except OSError as error:  # at worst it is sent once more after a restart
            LOGGER.warning("the delivery of an alert could not be recorded: %s", error.strerror)
        with self._change:
            self.letters.popleft()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"dse-alerts-{self.sink.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._change:
            self._stopping = True
            self._change.notify()

    def join(self, timeout: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._change:
                # Stopping still lets through what is due now, so the last alert of a run leaves the house.
                if self._stopping and not (self.letters and self.letters[0].due <= self._clock()):
                    return
                if not self.letters or self.letters[0].due > self._clock():
                    wait = self.letters[0].due - self._clock() if self.letters else None
                    self._change.wait(wait)
                    continue
            self.attempt()
