"""The workers of a watcher, one on each device: which job they have, and what becomes of those that fail."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from dse_monitor import errors
from dse_monitor.errors import DSEError, RunError
from dse_monitor.runs.record import evaluation_from_json
from dse_monitor.watch.console import Console, Header, Live, Notice, Problem
from dse_monitor.watch.dependencies import Clock
from dse_monitor.watch.files.waiting import Candidate
from dse_monitor.watch.run.watched_run import WatchedRun
from dse_monitor.watch.workers import memory
from dse_monitor.watch.workers.child import Worker, WorkerEnd

BURST = 20  # jobs of one worker: whatever leaks is given back then; chosen by us
LINGER_SECONDS = 5.0  # s that a worker without a job waits while a file settles; chosen by us
JOB_SECONDS = 600.0  # s without an answer after which a worker hangs, besides JOB_FACTOR; chosen by us
JOB_FACTOR = 10.0  # times the usual duration of a job, added to JOB_SECONDS; chosen by us
BACK_OFF_SECONDS = (60.0, 120.0, 300.0, 900.0)  # between attempts while a device has no room; chosen by us
START_TRIES = 3  # workers that may exit before their first word; chosen by us


@dataclass
class Job:
    """One checkpoint that a worker measures.

    Attributes:
        run: whose checkpoint it is.
        candidate: the checkpoint.
        number: of the job, in the worker's answers.
        started: when it was handed over, monotonic seconds.
        heard: when the worker last answered.
        answered: whether it has answered at all.
        progress: stage, steps done and steps in all.
    """

    run: WatchedRun
    candidate: Candidate
    number: int
    started: float
    heard: float
    answered: bool = False
    progress: tuple[str, int, int] | None = None


@dataclass
class _Slot:
    """A device and the worker on it.

    Attributes:
        device: where to evaluate.
        worker: None while there is none.
        job: what the worker measures; None while it has nothing to do.
        jobs: how many jobs this worker has done.
        idle_since: when it last finished, monotonic seconds.
        blocked_until: no job is handed over before, monotonic seconds.
        blocked: times in a row that there was no room on the device.
        reason: why the last job was turned down.
        described: device and precision as the console last showed them.
        durations: of the newest jobs, seconds.
    """

    device: str
    worker: Worker | None = None
    job: Job | None = None
    jobs: int = 0
    idle_since: float = 0.0
    blocked_until: float = -math.inf
    blocked: int = 0
    reason: str = ""
    described: str = ""
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=32))

    @property
    def patience(self) -> float:
        """Seconds without an answer after which the worker counts as hanging."""
        return JOB_SECONDS + JOB_FACTOR * (statistics.median(self.durations) if self.durations else 0.0)


class WorkerPool:
    """Hands the checkpoints of runs to workers and their answers to the runs.

    Args:
        devices: where to evaluate, one worker each.
        console: shows devices, progress and problems.
        clock: the time.
        make_worker: starts a worker.

    Attributes:
        active: when a job was last handed over or came back, monotonic seconds.
    """

    def __init__(
        self, devices: Collection[str], console: Console, clock: Clock, make_worker: Callable[[], Worker]
    ):
        self._console, self._clock, self._make_worker = console, clock, make_worker
        self._slots = [_Slot(device) for device in devices]
        self._last_number = 0
        self._any_result = False
        self._warned: set[str] = set()
        self._failed_starts = 0
        self.active = clock.monotonic()

    @property
    def jobs(self) -> list[Job]:
        """What is being measured."""
        return [slot.job for slot in self._slots if slot.job is not None]

    def blocked_reasons(self) -> list[str]:
        """Why devices get no jobs now."""
        now = self._clock.monotonic()
        return [slot.reason for slot in self._slots if now < slot.blocked_until]

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when a worker answers."""
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        return [number for worker in workers for number in worker.descriptors()]

    def due(self) -> float:
        """When there is something to do without an answer, monotonic seconds; never is infinite."""
        now = self._clock.monotonic()
        due = [slot.blocked_until for slot in self._slots if slot.blocked_until > now]
        for slot in self._slots:
            if slot.worker is not None:
                due.append(now + 1.0 if slot.job is None else slot.job.heard + slot.patience)
        return min(due, default=math.inf)

    def listen(self, runs: Collection[WatchedRun]) -> None:
        """Take in what workers answer, and notice those that died, hang or have nothing to do.

        Args:
            runs: all runs; while one of them may soon have a job, idle workers stay.

        Raises:
            DSEError: nothing can be measured at all, or workers cannot be started.
        """
        for slot in self._slots:
            if slot.worker is not None:
                self._listen(slot, slot.worker, runs)

    def dispatch(self, runs: Collection[WatchedRun]) -> None:
        """Give each free device a job of the run that has waited longest."""
        for slot in self._slots:
            if slot.job is None and self._clock.monotonic() >= slot.blocked_until:
                self._dispatch(slot, runs)

    def prepare(self, runs: Collection[WatchedRun]) -> None:
        """Start a worker when a file will be ready soon: it gets ready while the file lies still."""
        now = self._clock.monotonic()
        run = next((run for run in runs if run.foresees), None)
        if run is None:
            return
        free = [slot for slot in self._slots if slot.job is None and now >= slot.blocked_until]
        if free and not any(slot.worker for slot in free):
            slot = free[0]
            slot.worker, slot.idle_since = self._make_worker(), now
            slot.worker.prepare(run.preparation(slot.device))

    def close(self) -> None:
        """End all workers; what they measure now is lost."""
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.stop(kill=slot.job is not None)
                slot.worker = slot.job = None

    def _listen(self, slot: _Slot, worker: Worker, runs: Collection[WatchedRun]) -> None:
        end = worker.ended()  # asked first: what it wrote before its end is read below
        for answer in worker.receive():
            self._answered(slot, answer)
        if slot.worker is None:
            return
        now = self._clock.monotonic()
        if end is not None:
            self._died(slot, end)
        elif slot.job is not None and now - slot.job.heard > slot.patience:
            self._died(slot, WorkerEnd.silent(now - slot.job.heard))
        elif slot.job is None and (slot.jobs >= BURST or now - slot.idle_since >= _linger(runs)):
            self._end_worker(slot)

    def _end_worker(self, slot: _Slot, *, kill: bool = False) -> None:
        if slot.worker is not None:
            slot.worker.stop(kill=kill)
        if slot.jobs >= BURST:  # a long backlog takes memory of the watcher, too
            memory.release()
        slot.worker, slot.jobs = None, 0

    def _died(self, slot: _Slot, end: WorkerEnd) -> None:
        """A worker that exits before its first word cannot start; any other was killed by its checkpoint."""
        job, slot.job = slot.job, None
        unused = job is None and slot.jobs == 0
        self._end_worker(slot, kill=True)
        self._console.live(None)
        if job is None and not unused:
            return
        if job is not None and (job.answered or not end.by_itself):
            job.run.crashed(job.candidate, end.words)
            return
        self._failed_starts += 1
        if job is not None:
            job.run.put_back(job.candidate)
        if self._failed_starts >= START_TRIES:
            raise RunError(f"workers cannot be started: {end.words}")

    def _answered(self, slot: _Slot, answer: dict[str, Any]) -> None:
        job, now = slot.job, self._clock.monotonic()
        if job is None or answer.get("job") != job.number:
            return
        job.heard, job.answered = now, True
        if "progress" in answer:
            stage, done, total = answer["progress"]
            job.progress = (str(stage), int(done), int(total))
            text = f"{job.candidate.path}  {stage}"
            self._console.live(Live(text=text, done=job.progress[1], total=job.progress[2]))
        elif "device" in answer:
            self._describe(slot, str(answer["device"]))
        elif "warning" in answer:
            self._warn(str(answer["warning"]))
        else:
            self._finish(slot, job, answer, now)

    def _describe(self, slot: _Slot, words: str) -> None:
        device, _, more = words.partition("   ")
        device = device.strip()
        if device != slot.described:
            slot.described = device
            self._console.header(Header(label="device", text=device, aside=more.strip()))

    def _warn(self, text: str) -> None:
        """Each worker logs it again; it is shown once."""
        if text not in self._warned:
            self._warned.add(text)
            self._console.notice(Notice(run="", text=text, mark="warning"))

    def _finish(self, slot: _Slot, job: Job, answer: dict[str, Any], now: float) -> None:
        slot.job, slot.idle_since = None, now
        slot.jobs += 1
        self.active = now
        self._console.live(None)
        if "evaluation" in answer:
            slot.blocked, slot.reason = 0, ""
            slot.durations.append(now - job.started)
            self._any_result, self._failed_starts = True, 0
            job.run.evaluated(job.candidate, evaluation_from_json(answer["evaluation"]))
        elif answer.get("changed"):
            job.run.changed(job.candidate)
        elif answer.get("gone"):
            job.run.gone(job.candidate)
        elif "busy" in answer:
            self._block(slot, job, str(answer["busy"]))
        else:
            self._unusable(slot, job, str(answer.get("error", "")), str(answer.get("reason", "no answer")))

    def _unusable(self, slot: _Slot, job: Job, kind: str, reason: str) -> None:
        """Images, device or disk are in the way: fatal if nothing ever worked, else a pause."""
        error = getattr(errors, kind, None)
        if not self._any_result and isinstance(error, type) and issubclass(error, DSEError):
            raise error(reason)
        if not self._any_result and kind in ("ValueError", "TypeError", "OSError"):
            raise RunError(reason)
        self._block(slot, job, reason)

    def _block(self, slot: _Slot, job: Job, reason: str) -> None:
        pause = BACK_OFF_SECONDS[min(slot.blocked, len(BACK_OFF_SECONDS) - 1)]
        slot.blocked += 1
        slot.blocked_until, slot.reason = self._clock.monotonic() + pause, reason
        self._end_worker(slot)
        job.run.put_back(job.candidate)
        text = f"{reason}; trying again in {pause / 60:.0f} min"
        self._console.problem(Problem(run=job.run.name, path="", reason=text, kind=f"busy {slot.device}"))

    def _dispatch(self, slot: _Slot, runs: Collection[WatchedRun]) -> None:
        now = self._clock.monotonic()
        for run in sorted(runs, key=lambda run: run.served):
            candidate = run.next()
            if candidate is None:
                continue
            order = run.job(candidate, slot.device)
            if order is None:
                continue
            if slot.worker is not None and slot.jobs >= BURST:
                self._end_worker(slot)
            if slot.worker is None:
                slot.worker = self._make_worker()
            self._last_number += 1
            run.served = self.active = now
            slot.job = Job(run, candidate, self._last_number, now, now)
            slot.worker.send({"job": self._last_number, **order})
            self._console.live(Live(text=f"{candidate.path}  starting"))
            return


def _linger(runs: Collection[WatchedRun]) -> float:
    """Seconds that a worker without a job is kept."""
    return LINGER_SECONDS if any(run.settling or run.queue for run in runs) else 0.0
