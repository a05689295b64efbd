"""From what came of a checkpoint to its place in the ledger: a record, another name of one, a loss.

Order of every result: ledger (on disk) first, then event data, then best.json, then alerts. A watcher that is
killed in between publishes the rest when it starts again, because all of it is derived from the ledger.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import dse_monitor
from dse_monitor.runs.identity import Stamp
from dse_monitor.runs.ledger import Ledger
from dse_monitor.runs.record import Evaluation
from dse_monitor.watch.files.protected import Protected
from dse_monitor.watch.files.waiting import Candidate, Queue
from dse_monitor.watch.run import failures
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.counts import Counts
from dse_monitor.watch.run.publication import Publication
from dse_monitor.watch.run.records import Records


class Results:
    """Records what came of the checkpoints of one run.

    Args:
        context: the run.
        ledger: open for writing.
        records: what is on record; kept up with the ledger.
        queue: checkpoints that wait; those whose content has been measured leave it.
        protected: checkpoints protected from rotation.
        publication: what is derived from the ledger.
        counts: knows what bare numbers in names count.
    """

    def __init__(
        self,
        context: RunContext,
        ledger: Ledger,
        records: Records,
        queue: Queue,
        protected: Protected,
        publication: Publication,
        counts: Counts,
    ):
        self._context, self._ledger, self._records = context, ledger, records
        self._queue, self._protected, self._publication = queue, protected, publication
        self._counts = counts

    def completed(self, candidate: Candidate, evaluation: Evaluation) -> Evaluation:
        """A worker's evaluation with paths relative to the run, and times where the reader had none."""
        source = evaluation.source
        mtime = source.mtime if math.isfinite(source.mtime) else candidate.stamp.mtime_ns / 1e9
        return dataclasses.replace(
            evaluation,
            source=dataclasses.replace(source, path=candidate.path, mtime=mtime),
            reason=evaluation.reason.replace(f"{self._context.folder}/", ""),
            wall_time=evaluation.wall_time or self._context.clock.time(),
        )

    def record_once(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Record an evaluation, or another name of one whose encoder is the same."""
        evaluation = self._counts.of(candidate.path, evaluation)
        history = self._records.history
        for seq in self._records.versions.find_content(evaluation):
            if _same_progress(history[history.row(seq)], evaluation):
                self.known(candidate.path, candidate.stamp, seq, candidate.content_key)
                self._protected.release(candidate.path)
                return
        self.record(candidate, evaluation)

    def record(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Put an evaluation into the ledger, then into everything that is derived from it."""
        records = self._records
        evaluation = dataclasses.replace(evaluation, seq=self._publication.sequence())
        extra: dict[str, Any] = {
            "key": candidate.stamp.to_list(),
            "content_key": candidate.content_key,
            "request": self._context.options.request,
            "version": dse_monitor.__version__,
        }
        if candidate.versions:
            extra["versions_passed_over"] = candidate.versions
        on_disk = self._ledger.append_evaluation(evaluation, extra)
        records.history.append(evaluation)
        records.versions.add(candidate.path, candidate.stamp, evaluation.seq, candidate.content_key)
        records.versions.add_content(evaluation)
        if evaluation.status == "scored":
            records.failed.discard(candidate.path)
        else:
            records.failed.add(candidate.path)
        self._protected.release(candidate.path)
        for twin in self._queue.twins(candidate):
            self._queue.remove(twin.path)
            self.known(twin.path, twin.stamp, evaluation.seq, twin.content_key)
        self._publication.add(evaluation, on_disk=on_disk, more=bool(self._queue))

    def known(self, path: str, stamp: Stamp, seq: int, key: str | None = None) -> None:
        """Record a file whose content was dealt with already, under this or another name.

        Args:
            path: of the file, relative to the run.
            stamp: its version.
            seq: the evaluation of its content.
            key: see identity.content_key.
        """
        history, versions = self._records.history, self._records.versions
        history.set_left(seq, True)
        evaluation = history[history.row(seq)]
        if evaluation.status != "scored":
            self._records.failed.add(path)
        named = path == evaluation.source.path or path in evaluation.source.aliases
        if named and versions.find(path, stamp) == seq:
            return
        data = {"path": path, "key": stamp.to_list(), "content_key": key, "of": seq}
        self._ledger.append("alias", {**data, "request": self._context.options.request})
        history.alias(seq, path)
        versions.add(path, stamp, seq, key)

    def incomplete(self, candidate: Candidate, reason: str) -> None:
        """Record a file that its writer left unfinished."""
        text = f"{candidate.path} is not whole and does not grow: {reason}"
        now = self._context.clock.time()
        self.record(
            candidate, failures.failure(candidate.path, candidate.stamp, text, failures.INCOMPLETE, now)
        )

    def crashed(self, candidate: Candidate, reason: str) -> bool:
        """Record that a worker died on a checkpoint; whether it may be tried again."""
        data = {
            "path": candidate.path,
            "key": candidate.stamp.to_list(),
            "content_key": candidate.content_key,
            "reason": reason,
        }
        self._ledger.append("crash", data)
        crashes = self._records.versions.crashed(candidate.stamp, candidate.content_key)
        if crashes < failures.CRASHES:
            self._context.report.problem(candidate.path, f"{reason}; trying once more", "crash")
            return True
        now = self._context.clock.time()
        self.record(candidate, failures.crash(candidate.path, candidate.stamp, reason, now))
        return False

    def lost(self, path: str) -> None:
        """Record that a checkpoint was removed before it could be read."""
        self._queue.remove(path)
        self._ledger.append("lost", {"path": path})
        text = f"{path} was removed before it could be read; --copy-aside protects files"
        self._context.report.problem(path, text, "lost")


def _same_progress(known: Evaluation, new: Evaluation) -> bool:
    """Whether the same encoder also claims the same place; one that claims none adds nothing."""
    place = (new.source.epoch, new.source.step)
    return place in ((known.source.epoch, known.source.step), (None, None))
