"""From files that were seen to checkpoints that wait for a worker: the way into the queue and back."""

from __future__ import annotations

import math

from dse_monitor.runs import identity
from dse_monitor.runs.identity import Stamp
from dse_monitor.runs.record import Evaluation
from dse_monitor.watch.files.protected import Protected
from dse_monitor.watch.files.scanner import Scan
from dse_monitor.watch.files.settle import Settled
from dse_monitor.watch.files.waiting import Candidate, Filter, Queue, count_done
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.failures import TORN
from dse_monitor.watch.run.poller import Poller
from dse_monitor.watch.run.records import Records
from dse_monitor.watch.run.results import Results

TORN_TRIES = 3  # times a file is read whose bytes contradict themselves, before it is given up; chosen by us


class Intake:
    """Decides for each file of one run whether and when it waits for a worker.

    Args:
        context: the run.
        records: what is on record.
        poller: sees the files.
        option_filter: what the options pass over.
        queue: checkpoints that wait for a worker.
        protected: checkpoints protected from rotation.
        results: records what needs no worker.
    """

    def __init__(
        self,
        context: RunContext,
        records: Records,
        poller: Poller,
        option_filter: Filter,
        queue: Queue,
        protected: Protected,
        results: Results,
    ):
        self._context, self._records, self._poller = context, records, poller
        self._filter, self._queue, self._protected, self._results = option_filter, queue, protected, results
        self._torn_reads: dict[str, int] = {}
        self._passed_over: dict[str, int] = {}  # versions of a path since its last evaluation

    def take(self, scan: Scan, now: float) -> None:
        """Take in what a scan found."""
        context = self._context
        if scan.replaced:
            context.report.notice(f"{context.folder} is another folder than before; looking again")
            self._poller.follow_replaced_folder()
        if scan.unlooked:
            text = f"checkpoints may be missed in {context.folder}, not looked at: {scan.unlooked}"
            context.report.once(text, text)
        first = self._poller.scans == 1
        for path in scan.vanished:
            self._vanished(path, now)
        for path, stamp in scan.changed.items():
            self._changed(path, stamp, now, first)
        for path, stamp in self._protected.waiting() if first else ():
            if not self._poller.has(path) and self._records.versions.find(path, stamp) is None:
                self._ready(path, stamp, 0)

    def take_settled(self, settled: Settled) -> None:
        """Take in a file that waits no longer to become whole and still."""
        if settled.outcome == "gone":
            self._results.lost(settled.path)
        elif settled.stamp is not None and settled.outcome == "abandoned":
            candidate = self.candidate(settled.path, settled.stamp, None, settled.versions)
            self._results.incomplete(candidate, settled.reason)
        elif settled.stamp is not None:
            self._ready(settled.path, settled.stamp, settled.versions)

    def candidate(self, path: str, stamp: Stamp, key: str | None, versions: int) -> Candidate:
        """What is known of a file that is ready.

        Args:
            path: of the file, relative to the run.
            stamp: its version.
            key: see identity.content_key.
            versions: versions passed over while it settled.
        """
        done = count_done(self._context.dependencies.from_name(path))
        return Candidate(
            path=path,
            stamp=stamp,
            content_key=key,
            done=-math.inf if done is None else done,
            rolling=self._context.dependencies.is_rolling(path),
            appeared=self._queue.first_seen(path),
            versions=versions + self._passed_over.pop(path, 0),
        )

    def evaluated(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """A worker measured a checkpoint, or says why it cannot be."""
        evaluation = self._results.completed(candidate, evaluation)
        if evaluation.status == "failed" and evaluation.error in TORN and self._try_again(candidate):
            return
        self._torn_reads.pop(candidate.path, None)
        self._results.record_once(candidate, evaluation)

    def put_back(self, candidate: Candidate) -> None:
        """It was not evaluated; unless there is a newer version, it waits again."""
        if candidate.path not in self._poller.settler.waiting and candidate.path not in self._queue:
            self._queue.add(candidate)

    def pass_over(self, path: str) -> None:
        """Count a version of a file that will never be evaluated."""
        self._passed_over[path] = self._passed_over.get(path, 0) + 1

    def _changed(self, path: str, stamp: Stamp, now: float, first: bool) -> None:
        if self._queue.remove(path):
            self.pass_over(path)
        seq = self._records.versions.find(path, stamp)
        if seq is not None:
            self._results.known(path, stamp, seq)
            return
        if not first:
            self._queue.appeared(path, now)
        option = self._filter.refuses(path, stamp)
        if option:
            text = f"{path} is passed over because of {option}; later ones silently"
            self._context.report.once(option, text)
        else:
            self._poller.settler.add(path, stamp, now)

    def _vanished(self, path: str, now: float) -> None:
        self._poller.settler.discard(path)
        self._filter.forget(path)
        self._queue.vanished(path, now, rolling=self._context.dependencies.is_rolling(path))
        if not self._context.options.once:  # only then is it asked in the end
            self._records.failed.discard(path)
        self._torn_reads.pop(path, None)
        self._passed_over.pop(path, None)
        if path in self._queue and not self._protected.has(path):
            self._results.lost(path)

    def _ready(self, path: str, stamp: Stamp, versions: int) -> None:
        key = identity.content_key(self._protected.resolve(path))
        seq = self._records.versions.find(path, stamp)
        if seq is None:
            seq = self._records.versions.find_key(key)
        if seq is not None:
            self._results.known(path, stamp, seq, key)
            return
        self._queue.add(self.candidate(path, stamp, key, versions))
        if self._context.options.copy_aside:
            waiting = self._queue.in_order(self._context.clock.monotonic())
            self._protected.protect((candidate.path, candidate.stamp) for candidate in waiting)

    def _try_again(self, candidate: Candidate) -> bool:
        """After a read that failed as one of a changing file does: whether the file is looked at again."""
        path = self._protected.resolve(candidate.path)
        try:
            stamp = identity.stamp(path)
        except FileNotFoundError:
            self._results.lost(candidate.path)
            return True
        except OSError:
            stamp = candidate.stamp
        original = self._context.folder / candidate.path
        if path == original and not stamp.same_version(candidate.stamp):
            self.pass_over(candidate.path)
            self._poller.look_again(candidate.path)
            return True
        tries = self._torn_reads[candidate.path] = self._torn_reads.get(candidate.path, 0) + 1
        if tries >= (2 if self._context.options.once else TORN_TRIES):
            return False
        settler, now = self._poller.settler, self._context.clock.monotonic()
        settler.add(candidate.path, candidate.stamp, now, hold=settler.settle_seconds * 4 ** (tries - 1))
        return True
