"""What is on record of a run, in memory: read from its ledger at the start, then kept up with it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

from dse_monitor.runs.history import History
from dse_monitor.runs.identity import Stamp
from dse_monitor.runs.ledger import EVALUATIONS, Fact, Ledger
from dse_monitor.runs.record import Alert
from dse_monitor.watch.files.versions import Versions
from dse_monitor.watch.run.failures import is_final


@dataclass
class EarlierWatches:
    """What watchers before this one left in the ledger, besides evaluations and alerts.

    Attributes:
        silences: data of ``silence`` facts, in order.
        deliveries: what was recorded about alerts that were sent, in order.
        run: what the run is called for good; empty before its first watcher that names it.
        request: what the last of them measured (see `WatchOptions.request`); None if there was none.
    """

    silences: list[dict[str, Any]] = field(default_factory=list)
    deliveries: list[dict[str, Any]] = field(default_factory=list)
    run: str = ""
    request: str | None = None


@dataclass
class Records:
    """The evaluations and alerts of one run.

    Attributes:
        failed: paths of checkpoints that could not be measured.
        history: every evaluation.
        alerts: every alert, in the order they were recorded.
        versions: which files have been dealt with.
    """

    failed: set[str]
    history: History = field(default_factory=History)
    alerts: list[Alert] = field(default_factory=list)
    versions: Versions = field(default_factory=Versions)

    def replay(self, ledger: Ledger, request: str) -> EarlierWatches:
        """Learn from a ledger what was done.

        Args:
            ledger: of the run.
            request: what is to be measured now; files measured otherwise are measured again.
        """
        earlier = EarlierWatches()
        for fact in ledger.facts():
            if fact.kind in EVALUATIONS:
                self._learn(fact, request)
            elif fact.kind == "alias":
                self._learn_alias(fact, request)
            elif fact.kind == "crash":
                self.versions.crashed(Stamp.from_list(fact.data["key"]), fact.data.get("content_key"))
            elif fact.kind == "alert":
                self.alerts.append(fact.alert)
            elif fact.kind == "silence":
                earlier.silences.append(fact.data)
            elif fact.kind == "delivery":
                earlier.deliveries.append(fact.data["delivery"])
            elif fact.kind == "run":
                earlier.run = str(fact.data.get("id", ""))
            elif fact.kind == "watch":
                earlier.request = fact.data.get("request")
        return earlier

    def _learn(self, fact: Fact, request: str) -> None:
        evaluation = fact.evaluation
        self.history.append(evaluation)
        self.versions.add_content(evaluation)
        again = evaluation.status == "failed" and not is_final(evaluation, fact.data.get("version"))
        if fact.data.get("request") == request and not again and fact.data.get("key"):
            stamp = Stamp.from_list(fact.data["key"])
            self.versions.add(evaluation.source.path, stamp, evaluation.seq, fact.data.get("content_key"))

    def _learn_alias(self, fact: Fact, request: str) -> None:
        with contextlib.suppress(KeyError):  # the line it refers to could not be read
            self.history.alias(fact.data["of"], fact.data["path"])
            if fact.data.get("request") == request:
                stamp = Stamp.from_list(fact.data["key"])
                self.versions.add(fact.data["path"], stamp, fact.data["of"], fact.data.get("content_key"))
