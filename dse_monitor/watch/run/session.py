"""What is held of a run while it is under watch: taken in one order, given back in the other."""

from __future__ import annotations

import contextlib
import uuid

import dse_monitor
from dse_monitor.evaluation import fingerprints
from dse_monitor.runs import heartbeat
from dse_monitor.runs.ledger import Ledger
from dse_monitor.runs.locking import RunLock
from dse_monitor.runs.record import Evaluation
from dse_monitor.watch import shards
from dse_monitor.watch.files.protected import Protected
from dse_monitor.watch.files.waiting import Candidate, Filter, Queue, in_training_order
from dse_monitor.watch.run import jobs, requests
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.counts import Counts
from dse_monitor.watch.run.intake import Intake
from dse_monitor.watch.run.poller import Poller
from dse_monitor.watch.run.publication import Publication
from dse_monitor.watch.run.records import EarlierWatches, Records
from dse_monitor.watch.run.results import Results


class Session:
    """A run's lock, ledger and event data, and what works on them.

    On return, everything that earlier watchers and scoring processes left has been taken over and published.

    Args:
        context: the run.
        records: empty; filled from the ledger and kept up with it.
        queue: checkpoints that wait for a worker.
        poller: sees the run's folder.
        option_filter: what the options pass over.

    Raises:
        RunError: another watcher holds the run.
        OutputError: the output folder cannot be written.
    """

    def __init__(
        self, context: RunContext, records: Records, queue: Queue, poller: Poller, option_filter: Filter
    ) -> None:
        self._context, self._records = context, records
        self._lock = RunLock(context.out)
        dead_holder = self._lock.take(heartbeat=context.out / heartbeat.NAME)
        try:
            self.ledger = Ledger.open(context.out, context.clock.time)
            self.counts = Counts(context, self.ledger, records, poller, self.ledger.unit())
            images = fingerprints.cached(jobs.cache(context.out)) if context.options.remeasure else None
            earlier = records.replay(self.ledger, context.options.request, images)
            self._report_start(earlier)
            if not earlier.run:
                self.ledger.append("run", {"id": uuid.uuid4().hex[:12]})
            self._record_start(taken_over=dead_holder is not None)
            self.protected = Protected(context.folder, context.out, context.options.copy_aside)
            self.publication = Publication(context, self.ledger, records, poller)
            self.publication.resume(earlier)
            self.results = Results(
                context, self.ledger, records, queue, self.protected, self.publication, self.counts
            )
            self.intake = Intake(context, records, poller, option_filter, queue, self.protected, self.results)
            self._take_over_shards()
        except BaseException:
            self._lock.release()
            raise

    def take_requests(self) -> None:
        """Take what people asked for into the ledger."""
        for path, silence in requests.waiting(self._context.out):
            if silence is None:
                text = f"{path} is not a request; it was removed"
                self._context.report.problem("", text, f"request {path.name}")
            else:
                self.ledger.append("silence", silence)
                self.publication.silence(silence)
            with contextlib.suppress(OSError):
                path.unlink()

    def finish(self, timeout: float) -> None:
        """Write what waits; alerts get so many seconds to be delivered."""
        self.ledger.retry()
        self.publication.close(timeout)

    def release(self) -> None:
        """Give ledger and lock back."""
        self.ledger.close()
        self._lock.release()

    def drop(self) -> None:
        """Let go of a folder that is gone, so that it can come back in any state."""
        self.publication.drop()
        self.release()

    def _report_start(self, earlier: EarlierWatches) -> None:
        context = self._context
        for warning in self.ledger.warnings:
            context.report.problem("", warning, "ledger")
        context.report.header(
            context.folder,
            context.out,
            self._records.history,
            context.options.config,
            other_settings=earlier.request not in (None, context.options.request),
            other_pictures=earlier.other_pictures,
            remeasure=context.options.remeasure,
        )

    def _record_start(self, *, taken_over: bool) -> None:
        options = self._context.options
        me = heartbeat.new(dse_monitor.__version__, self._context.clock.time())
        data = {"host": me.host, "pid": me.pid, "version": me.version, "taken_over": taken_over}
        data |= {"request": options.request, "probe": options.config.to_json(), "asked": options.asked}
        self.ledger.append("watch", data)

    def _take_over_shards(self) -> None:
        """Record what several processes measured together, as if it had been measured here."""
        request, versions = self._context.options.request, self._records.versions
        found: dict[Candidate, Evaluation] = {}
        for item in shards.measured(self._context.out):
            if item.request == request:
                candidate = self.intake.candidate(item.path, item.stamp, item.content_key, 0)
                found[candidate] = item.evaluation
        for candidate in in_training_order(found):
            seq = versions.find(candidate.path, candidate.stamp)
            if seq is None:
                seq = versions.find_key(candidate.content_key)
            if seq is None:
                self.results.record_once(candidate, found[candidate])
        if not self.ledger.pending:
            shards.clear(self._context.out, request)
