"""What is on record of a run, in memory: read from its ledger at the start, then kept up with it."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from dse_monitor.runs.history import History
from dse_monitor.runs.identity import Stamp
from dse_monitor.runs.ledger import EVALUATIONS, Fact, Ledger
from dse_monitor.runs.record import Alert
from dse_monitor.watch.files.versions import Versions
from dse_monitor.watch.run.failures import is_final
from dse_monitor.watch.run.pictures import Pictures


@dataclass
class EarlierWatches:
    """What watchers before this one left in the ledger, besides evaluations and alerts.

    Attributes:
        silences: data of ``silence`` facts, in order.
        deliveries: what was recorded about alerts that were sent, in order.
        run: what the run is called for good; empty before its first watcher that names it.
        request: what the last of them measured (see `WatchOptions.request`); None if there was none.
        other_pictures: how many checkpoints have a score on earlier pictures alone (see pictures.py).
    """

    silences: list[dict[str, Any]] = field(default_factory=list)
    deliveries: list[dict[str, Any]] = field(default_factory=list)
    run: str = ""
    request: str | None = None
    other_pictures: int = 0


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

    def replay(self, ledger: Ledger, request: str, images: Container[str] | None = None) -> EarlierWatches:
        """Learn from a ledger what was done.

        Args:
            ledger: of the run.
            request: what is to be measured now; files measured otherwise are measured again.
            images: fingerprints of the images to measure on; files measured on others are measured again as
                well. None if it does not matter which.
        """
        earlier, pictures = EarlierWatches(), Pictures()
        passed_over: set[int] = set()  # evaluations on other images
        for fact in ledger.facts():
            if fact.kind in EVALUATIONS:
                if fact.data.get("request") == request:
                    pictures.learn(fact.evaluation)
                settings = fact.evaluation.settings
                if images is not None and settings is not None and settings.images not in images:
                    passed_over.add(fact.evaluation.seq)
                self._learn(fact, request, again=fact.evaluation.seq in passed_over)
            elif fact.kind == "alias":
                self._learn_alias(fact, request, again=fact.data.get("of") in passed_over)
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
        earlier.other_pictures = pictures.others
        return earlier

    def _learn(self, fact: Fact, request: str, *, again: bool) -> None:
        evaluation = fact.evaluation
        self.history.append(evaluation)
        self.versions.add_content(evaluation)
        again |= evaluation.status == "failed" and not is_final(evaluation, fact.data.get("version"))
        if fact.data.get("request") == request and not again and fact.data.get("key"):
            stamp = Stamp.from_list(fact.data["key"])
            self.versions.add(evaluation.source.path, stamp, evaluation.seq, fact.data.get("content_key"))

    def _learn_alias(self, fact: Fact, request: str, *, again: bool) -> None:
        with contextlib.suppress(KeyError):  # the line it refers to could not be read
            self.history.alias(fact.data["of"], fact.data["path"])
            if fact.data.get("request") == request and not again:
                stamp = Stamp.from_list(fact.data["key"])
                self.versions.add(fact.data["path"], stamp, fact.data["of"], fact.data.get("content_key"))
