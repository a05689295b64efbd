"""One watched run: its folder, its ledger, and what happens to each checkpoint in between.

poller        sees the folder: scans, change events, files that settle
intake        from files that were seen to the queue
queue         checkpoints that wait for a worker (files/waiting.py)
results       from what a worker found to the ledger
publication   from the ledger to event data, best.json and alerts
session       what is held while the run is open: its lock, its ledger and the last four of these
"""

from __future__ import annotations

import math
from typing import Any

from dse_monitor.runs.history import History
from dse_monitor.runs.record import Evaluation
from dse_monitor.watch.files.waiting import Candidate, Filter, Queue
from dse_monitor.watch.run import goal, jobs
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.heartbeats import Heartbeats
from dse_monitor.watch.run.poller import UNSETTLED_SECONDS, Poller
from dse_monitor.watch.run.records import Records
from dse_monitor.watch.run.session import Session


class WatchedRun:
    """A run under watch. Nothing here blocks for long and torch is never loaded.

    Args:
        context: the run, and what it is watched with.

    Attributes:
        folder: the run's folder.
        out: its output folder.
        name: its name.
        queue: checkpoints that wait for a worker.
        served: when a worker last got a job of this run, monotonic seconds.
        failed: paths of checkpoints that could not be measured.
        unlooked: whether the last scan did not look at everything.
        identity: device and inode of the folder when it was last opened or scanned; None if it never was.
    """

    def __init__(self, context: RunContext):
        self._context = context
        self.folder, self.out, self.name = context.folder, context.out, context.name
        since = context.clock.time()
        self._filter = Filter(context.options, context.dependencies.from_name, since)
        self._heartbeats = Heartbeats(context, self._filter, since)
        self._session: Session | None = None
        self.served = -math.inf
        self.failed: set[str] = set()
        self.unlooked = False
        self.identity: tuple[int, int] | None = None
        self._forget()

    def _forget(self) -> None:
        """Drop everything that the ledger and the folder will say again."""
        self._records = Records(self.failed)
        self._poller = Poller(self._context)
        self.queue = Queue(once=self._context.options.once)

    @property
    def open(self) -> bool:
        """Whether the run's lock and ledger are held: its folder was there at the last look."""
        return self._session is not None

    @property
    def history(self) -> History:
        """The evaluations on record."""
        return self._records.history

    @property
    def scans(self) -> int:
        """Scans that could read the folder so far."""
        return self._poller.scans

    @property
    def sees_others(self) -> bool:
        """Whether folders below it are runs of their own."""
        return self._poller.sees_others

    @property
    def due(self) -> float:
        """When :meth:`poll` has something to do, monotonic seconds."""
        if self._session is None:
            return self._poller.next_scan
        return min(self._poller.due, self._session.publication.due)

    @property
    def idle(self) -> bool:
        """Whether the folder was looked at and nothing waits."""
        return self.scans > 0 and not self.queue and not self.settling

    @property
    def settling(self) -> bool:
        """Whether files are being written or lie still."""
        return bool(self._poller.settler.waiting)

    @property
    def foresees(self) -> bool:
        """Whether a file will be ready within seconds, if it stays as it is."""
        return self.open and self._poller.settler.foresees(self._context.clock.monotonic())

    def poll(self) -> None:
        """Look for changes as far as that is due.

        Raises:
            RunError: another watcher holds the run.
            OutputError: the output folder cannot be written.
        """
        now = self._context.clock.monotonic()
        if self._session is not None and self._session.counts.revised:
            self._suspend(self._session, now)  # what is on record is read anew, in the other unit
            self._poller.next_scan = now
        self._poller.take_events(now)
        if now >= self._poller.next_scan:
            session = self._session or self._try_to_open()
            if session is None:
                self._poller.next_scan = now + (self._context.options.poll_seconds or UNSETTLED_SECONDS)
                return
            self._scan(session, now)
        session = self._session
        if session is None:
            return
        for settled in self._poller.settled(now):
            session.intake.take_settled(settled)
        self._poller.report_slow(now)
        if now >= session.publication.due:
            session.publication.recover()

    def _try_to_open(self) -> Session | None:
        context = self._context
        if not context.folder.is_dir():
            context.report.once("missing", f"{context.folder} does not exist yet; waiting for it")
            return None
        self._forget()
        self._session = Session(context, self._records, self.queue, self._poller, self._filter)
        context.report.over("missing")
        self._poller.listen()
        return self._session

    def _scan(self, session: Session, now: float) -> None:
        folder, report = self.folder, self._context.report
        scan = self._poller.scan(now)
        if scan.state == "missing" or session.ledger.moved:
            gone = f"{folder} is gone" if scan.state == "missing" else f"{session.ledger.path} was removed"
            report.problem("", f"{gone}; waiting for it to come back", "gone")
            self._suspend(session, now)
        elif scan.state == "unreachable":
            report.once("unreachable", f"{folder} cannot be read now: {scan.reason}; trying again")
        else:
            report.over("unreachable")
            self.unlooked, self.identity = bool(scan.unlooked), self._poller.identity
            session.intake.take(scan, now)
            session.take_requests()

    def _suspend(self, session: Session, now: float) -> None:
        """Hold nothing of a folder that is gone, and wait for it."""
        self._session = None
        self._poller.stop_listening()
        session.drop()
        self._forget()
        self._poller.next_scan = now + UNSETTLED_SECONDS

    def leave(self) -> None:
        """The folder is elsewhere now: hold nothing of it and write nothing more."""
        if self._session is not None:
            self._suspend(self._session, self._context.clock.monotonic())

    def postpone(self, seconds: float) -> None:
        """It could not be opened; try again after so many seconds."""
        self._poller.next_scan = self._context.clock.monotonic() + seconds

    def close(self, timeout: float = 2.0) -> None:
        """Write the last state and give everything back; alerts get so many seconds to be delivered."""
        session, self._session = self._session, None
        if session is None:
            return
        self._poller.stop_listening()
        session.finish(timeout)
        self._heartbeats.write("ended", self._records, self.queue, self._poller)
        session.release()

    def next(self) -> Candidate | None:
        """Take the checkpoint to evaluate next out of the queue."""
        if self._session is None or self._session.ledger.full:
            return None
        return self.queue.take(self._context.clock.monotonic())

    def job(self, candidate: Candidate, device: str) -> dict[str, Any] | None:
        """What a worker is asked to do with a checkpoint of :meth:`next`; None when its file is gone."""
        if self._session is None:
            return None
        try:
            file = jobs.job(self.folder, self._session.protected, candidate)
        except OSError:
            self._session.results.lost(candidate.path)
            return None
        return {**file, **jobs.measuring(self._context.options, self._context.out, device)}

    def preparation(self, device: str) -> dict[str, Any]:
        """What a worker is asked while a file lies still: what will be measured, and the last image size."""
        measuring = jobs.measuring(self._context.options, self._context.out, device)
        return {"prepare": measuring, "images": jobs.last_images(self.history)}

    def put_back(self, candidate: Candidate) -> None:
        """It was not evaluated; unless there is a newer version, it waits again."""
        if self._session is not None:
            self._session.intake.put_back(candidate)

    def evaluated(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """A worker measured a checkpoint, or says why it cannot be."""
        if self._session is not None:
            self._session.intake.evaluated(candidate, evaluation)

    def changed(self, candidate: Candidate) -> None:
        """The file was rewritten before it could be read: wait for the new version."""
        if self._session is not None:
            self._session.intake.pass_over(candidate.path)
        self._poller.look_again(candidate.path)

    def gone(self, candidate: Candidate) -> None:
        """The file was removed before it could be read."""
        if self._session is not None:
            self._poller.missed(candidate.path)
            self._session.results.lost(candidate.path)

    def crashed(self, candidate: Candidate, reason: str) -> None:
        """The worker died on it: once more, then never again for this content."""
        if self._session is not None and self._session.results.crashed(candidate, reason):
            self._session.intake.put_back(candidate)

    def waiting_for(self) -> str:
        """The file that is being written now, in words; empty if there is none."""
        return self._poller.waiting_for()

    def reached(self, epoch: float | None, step: int | None) -> bool:
        """Whether a checkpoint with so many epochs or steps done was dealt with, and nothing waits."""
        return self.idle and goal.reached(self.history, epoch, step, self._context.dependencies.from_name)

    def remind(self) -> None:
        """Publish the alerts that fall due by the clock alone."""
        if self._session is not None:
            self._session.publication.remind(more=bool(self.queue))

    def beat(
        self,
        state: str,
        current: str = "",
        progress: tuple[str, int, int] | None = None,
        message: str = "",
    ) -> None:
        """Write what is being done now.

        Args:
            state: see heartbeat.Heartbeat.
            current: the checkpoint being evaluated, relative to the run.
            progress: its stage, steps done and steps in all.
            message: why the run waits.
        """
        if self._session is None:
            return
        message = message or self.waiting_for()
        self._heartbeats.write(
            state,
            self._records,
            self.queue,
            self._poller,
            current=current,
            progress=progress,
            message=message,
            next_scan=max(0.0, self._poller.next_scan - self._context.clock.monotonic()),
        )
        self._session.publication.beat(len(self.queue), current, message)
