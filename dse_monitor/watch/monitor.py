"""The loop: look, let settle, evaluate, record, publish, judge. One thread decides; no torch in this process.

Exit codes of :func:`watch`:
    0   ended as asked: by a signal, by `--exit-after-idle`, `--until-...`, or `--once` with everything
    measured 3   `--once`, and at least one checkpoint could not be measured
Errors of the tree (errors.py) are raised: a held run, unusable images, a missing device.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dse_monitor import errors
from dse_monitor.errors import DSEError, RunError
from dse_monitor.runs.record import evaluation_from_json
from dse_monitor.watch.console import Console, Header, Live, Notice, Problem
from dse_monitor.watch.dependencies import Clock, Parts
from dse_monitor.watch.files import discovery
from dse_monitor.watch.files.waiting import Candidate
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.run.watched_run import WatchedRun
from dse_monitor.watch.workers import child, memory
from dse_monitor.watch.workers.child import Worker, WorkerProcess

BURST = 20  # jobs of one worker: whatever leaks is given back then; ours
LINGER_SECONDS = 5.0  # a worker without a job waits while a file settles; ours
JOB_SECONDS = 600.0  # s without a word from a worker that are too long, plus JOB_FACTOR x the usual job; ours
JOB_FACTOR = 10.0
BACK_OFF_SECONDS = (60.0, 120.0, 300.0, 900.0)  # between attempts when there is no room on a device; ours
START_TRIES = 3  # workers that may die before their first word; ours
BEAT_SECONDS = 10.0  # between words about what is being done; ours
REMIND_SECONDS = 60.0  # between looks of the alerts at the clock; ours
DISCOVER_SECONDS = 15.0  # between searches for new runs; ours
JUMP_SECONDS = 60.0  # s the wall clock may drift against the monotonic one before it is a jump; ours
TICK_SECONDS = 60.0  # longest sleep

EXIT_OK, EXIT_FAILED = 0, 3


class SystemClock:
    """The machine's time."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time()


@dataclass
class _Job:
    run: WatchedRun
    candidate: Candidate
    number: int
    started: float
    heard: float
    spoke: bool = False
    progress: tuple[str, int, int] | None = None


@dataclass
class _Slot:
    """A device and the worker on it."""

    device: str
    worker: Worker | None = None
    job: _Job | None = None
    jobs: int = 0
    idle_since: float = 0.0
    blocked_until: float = -math.inf
    blocked: int = 0
    reason: str = ""
    described: str = ""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=32))


class Monitor:
    """Follows the runs of its options until it is told to end.

    Args:
        options: what is asked for.
        console: says things.
        parts: what runs are watched with; the real ones if None.
        make_worker: starts a worker.
        clock: the time.
        sleep: waits for one of these file descriptors or so many seconds.
    """

    def __init__(
        self,
        options: WatchOptions,
        console: Console,
        *,
        parts: Parts | None = None,
        make_worker: Callable[[], Worker] | None = None,
        clock: Clock | None = None,
        sleep: Callable[[list[int], float], None] | None = None,
    ):
        memory.settle()
        self._options, self._console = options, console
        self._parts = parts or Parts.real()
        self._clock = clock or SystemClock()
        self._make_worker = make_worker or self._start_worker
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._sleep = sleep or self._select
        self._slots = [_Slot(device) for device in options.devices]
        self._parents = {folder: folder for folder in options.runs}
        self.runs: dict[Path, WatchedRun] = {}
        self._opened = 0
        self._job = 0
        self._any_result = False
        self._start_failures = 0
        self._next_discovery = -math.inf
        self._next_beat = self._next_reminder = -math.inf
        self._busy_at = self._clock.monotonic()
        self._drift = self._clock.time() - self._clock.monotonic()
        self._waiting_said = False
        self.stopping = threading.Event()

    def run(self) -> int:
        """Watch until there is a reason to end; returns the exit code.

        Raises:
            RunError: another watcher holds a run, or workers cannot be started.
            ImagesError, DeviceError, OutputError: nothing can be measured at all.
        """
        try:
            while not self.stopping.is_set():
                timeout = self.step()
                if timeout is None:
                    break
                self._sleep(self._descriptors(), timeout)
                self._drain_wake()
        finally:
            self.close()
        return self._code()

    def stop(self) -> None:
        """Ask for the end; may be called from a signal handler or another thread."""
        self.stopping.set()
        self.wake()

    def wake(self) -> None:
        """End the current sleep; may be called from another thread."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"x")

    def step(self) -> float | None:
        """Do everything that is due; seconds until the next time, None when the work is done."""
        now = self._clock.monotonic()
        self._discover(now)
        for run in list(self.runs.values()):
            run.tend()
        self._trim()
        for slot in self._slots:
            self._listen(slot)
        for slot in self._slots:
            self._dispatch(slot)
        self._prepare()
        self._look_at_clock()
        self._beat(now)
        if self._finished(now):
            return None
        return self._timeout()

    def close(self) -> None:
        """End workers and give every run back. A result that is not recorded yet is measured again later."""
        self.stopping.set()
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.stop(kill=slot.job is not None)
                slot.worker = slot.job = None
        for run in self.runs.values():
            run.close()
        self._console.close()
        for descriptor in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    # Runs.

    def _discover(self, now: float) -> None:
        """Find runs; with `once` a folder without any is taken for a run itself."""
        if now < self._next_discovery:
            return
        self._next_discovery = now + (self._options.poll_seconds or DISCOVER_SECONDS)
        for folder in self._options.runs:
            if folder in self.runs:
                continue
            for found in discovery.find_runs(folder, self._parts.is_candidate, self._has_number):
                self._add(found, folder)
            nothing_there = folder not in self.runs and not any(folder in run.parents for run in self.runs)
            if nothing_there and self._options.once:
                self._add(folder, folder)
        if not self.runs and not self._waiting_said:
            self._waiting_said = True
            self._next_discovery = now + 2.0
            names = ", ".join(str(folder) for folder in self._options.runs)
            self._console.notice(Notice(run="", text=f"no checkpoint in {names} yet; waiting for the first"))
        elif not self.runs:
            self._next_discovery = now + 2.0

    def _has_number(self, name: str) -> bool:
        return bool(self._parts.from_name(name).pattern)

    def _add(self, folder: Path, parent: Path) -> None:
        if folder in self.runs:
            return
        name = folder.name or str(folder)
        if any(run.name == name for run in self.runs.values()):
            name = str(folder.relative_to(parent.parent)) if parent != folder else str(folder)
        out = self._options.output(folder, None if parent == folder else parent)
        self.runs[folder] = WatchedRun(
            folder,
            out,
            name,
            self._options,
            self._console,
            self._parts,
            self._clock,
            wake=self.wake,
            cancelled=self.stopping.is_set,
        )
        self._console.several = self._console.several or len(self.runs) > 1 or parent != folder

    def _trim(self) -> None:
        """Give back what opening a run took."""
        opened = sum(run.open for run in self.runs.values())
        if opened > self._opened:
            memory.release()
        self._opened = opened

    # Workers.

    def _start_worker(self) -> Worker:
        manners = self._options.manners
        return WorkerProcess(child.command(manners), manners.environment())

    def _listen(self, slot: _Slot) -> None:
        """Take in what a worker says, and notice when it died, hangs or has nothing to do."""
        if slot.worker is None:
            return
        ended = slot.worker.ended()  # asked first: what it wrote before its end is read below
        for answer in slot.worker.receive():
            self._heard(slot, answer)
        now = self._clock.monotonic()
        if slot.worker is None:
            return
        if ended is not None:
            self._died(slot, ended)
        elif slot.job is not None and now - slot.job.heard > self._patience(slot):
            self._died(slot, f"the worker said nothing for {now - slot.job.heard:.0f} s")
        elif slot.job is None and (slot.jobs >= BURST or now - slot.idle_since >= self._linger()):
            self._end_worker(slot)

    def _linger(self) -> float:
        settling = any(run.settling for run in self.runs.values())
        waiting = any(run.queue for run in self.runs.values())
        return LINGER_SECONDS if settling or waiting else 0.0

    def _patience(self, slot: _Slot) -> float:
        return JOB_SECONDS + JOB_FACTOR * (statistics.median(slot.seconds) if slot.seconds else 0.0)

    def _end_worker(self, slot: _Slot, *, kill: bool = False) -> None:
        if slot.worker is not None:
            slot.worker.stop(kill=kill)
        if slot.jobs >= BURST:  # a long backlog takes memory of the watcher, too
            memory.release()
        slot.worker, slot.jobs = None, 0

    def _died(self, slot: _Slot, reason: str) -> None:
        job, slot.job = slot.job, None
        unused = job is None and slot.jobs == 0
        self._end_worker(slot, kill=True)
        self._console.live(None)
        if job is None and not unused:
            return
        if job is not None and (job.spoke or "ended by" in reason or "said nothing" in reason):
            job.run.crashed(job.candidate, reason)
            return
        self._start_failures += 1
        if job is not None:
            job.run.put_back(job.candidate)
        if self._start_failures >= START_TRIES:
            raise RunError(f"workers cannot be started: {reason}")

    def _heard(self, slot: _Slot, answer: dict[str, Any]) -> None:
        job, now = slot.job, self._clock.monotonic()
        if job is None or answer.get("job") != job.number:
            return
        job.heard, job.spoke = now, True
        if "progress" in answer:
            stage, done, total = answer["progress"]
            job.progress = (str(stage), int(done), int(total))
            text = f"{job.candidate.path}  {stage}"
            self._console.live(Live(text=text, done=job.progress[1], total=job.progress[2]))
        elif "device" in answer:
            self._describe(slot, str(answer["device"]))
        else:
            self._finish(slot, job, answer, now)

    def _describe(self, slot: _Slot, words: str) -> None:
        device, _, aside = words.partition("   ")
        device = device.strip()
        if device != slot.described:
            slot.described = device
            self._console.header(Header(label="device", text=device, aside=aside.strip()))

    def _finish(self, slot: _Slot, job: _Job, answer: dict[str, Any], now: float) -> None:
        slot.job, slot.idle_since = None, now
        slot.jobs += 1
        self._busy_at = now
        self._console.live(None)
        if "evaluation" in answer:
            slot.blocked, slot.reason = 0, ""
            slot.seconds.append(now - job.started)
            self._any_result, self._start_failures = True, 0
            job.run.evaluated(job.candidate, evaluation_from_json(answer["evaluation"]))
        elif answer.get("changed"):
            job.run.changed(job.candidate)
        elif answer.get("gone"):
            job.run.gone(job.candidate)
        elif "busy" in answer:
            self._block(slot, job, str(answer["busy"]))
        else:
            self._unusable(slot, job, str(answer.get("error", "")), str(answer.get("reason", "no answer")))

    def _unusable(self, slot: _Slot, job: _Job, kind: str, reason: str) -> None:
        """Images, device or disk are in the way: fatal if nothing ever worked, else a pause."""
        error = getattr(errors, kind, None)
        if not self._any_result and isinstance(error, type) and issubclass(error, DSEError):
            raise error(reason)
        if not self._any_result and kind in ("ValueError", "TypeError", "OSError"):
            raise RunError(reason)
        self._block(slot, job, reason)

    def _block(self, slot: _Slot, job: _Job, reason: str) -> None:
        pause = BACK_OFF_SECONDS[min(slot.blocked, len(BACK_OFF_SECONDS) - 1)]
        slot.blocked += 1
        slot.blocked_until, slot.reason = self._clock.monotonic() + pause, reason
        self._end_worker(slot)
        job.run.put_back(job.candidate)
        text = f"{reason}; trying again in {pause / 60:.0f} min"
        self._console.problem(Problem(run=job.run.name, path="", reason=text, kind=f"busy {slot.device}"))

    def _dispatch(self, slot: _Slot) -> None:
        now = self._clock.monotonic()
        if slot.job is not None or now < slot.blocked_until or self.stopping.is_set():
            return
        for run in sorted(self.runs.values(), key=lambda run: run.served):
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
            self._job += 1
            run.served = now
            slot.job = _Job(run, candidate, self._job, now, now)
            self._busy_at = now
            slot.worker.send({"job": self._job, **order})
            self._console.live(Live(text=f"{candidate.path}  starting"))
            return

    def _prepare(self) -> None:
        """Start a worker when a file will be ready soon: it gets ready while the file lies still."""
        now = self._clock.monotonic()
        foreseen = next((run for run in self.runs.values() if run.foresees), None)
        if self.stopping.is_set() or foreseen is None:
            return
        idle = [slot for slot in self._slots if slot.job is None and now >= slot.blocked_until]
        if idle and not any(slot.worker for slot in idle):
            slot = idle[0]
            slot.worker, slot.idle_since = self._make_worker(), now
            slot.worker.prepare(foreseen.preparation(slot.device))

    # The clock, and the end.

    def _look_at_clock(self) -> None:
        drift = self._clock.time() - self._clock.monotonic()
        if abs(drift - self._drift) > JUMP_SECONDS:
            moved = drift - self._drift
            text = f"the clock jumped by {moved:+.0f} s; order and ages do not depend on it"
            self._console.notice(Notice(run="", text=text))
        self._drift = drift

    def _beat(self, now: float) -> None:
        if now >= self._next_reminder:
            self._next_reminder = now + REMIND_SECONDS
            for run in self.runs.values():
                run.remind()
        if now < self._next_beat:
            return
        self._next_beat = now + BEAT_SECONDS
        jobs = {slot.job.run.folder: slot.job for slot in self._slots if slot.job is not None}
        reasons = [slot.reason for slot in self._slots if now < slot.blocked_until]
        for run in self.runs.values():
            job = jobs.get(run.folder)
            if job is not None:
                run.beat("evaluating", job.candidate.path, job.progress)
            elif reasons and run.queue:
                run.beat("deferred", message=reasons[0])
            else:
                run.beat("waiting")
        if self._console.shows_progress and not jobs:
            waiting = next((text for run in self.runs.values() if (text := run.waiting_for())), "")
            self._console.live(Live(text=waiting) if waiting else None)

    def _finished(self, now: float) -> bool:
        if any(slot.job is not None for slot in self._slots):
            return False
        quiet = all(run.idle for run in self.runs.values())
        if not quiet:
            self._busy_at = now
        options = self._options
        if options.once:
            missing = [run for run in self.runs.values() if not run.open and run.scans == 0]
            if missing:
                raise RunError(f"{missing[0].folder} does not exist; give the folder of a run")
            return quiet
        if options.exit_after_idle is not None and now - self._busy_at >= options.exit_after_idle:
            self._console.notice(
                Notice(run="", text=f"nothing new for {options.exit_after_idle:.0f} s; ending as asked")
            )
            return True
        if (options.until_epoch is None and options.until_step is None) or not self.runs:
            return False
        return all(run.reached(options.until_epoch, options.until_step) for run in self.runs.values())

    def _code(self) -> int:
        failed = any(run.failed for run in self.runs.values())
        return EXIT_FAILED if self._options.once and failed else EXIT_OK

    def _timeout(self) -> float:
        now = self._clock.monotonic()
        due = [self._next_discovery, self._next_beat, self._next_reminder]
        due += [run.due() for run in self.runs.values()]
        due += [slot.blocked_until for slot in self._slots if slot.blocked_until > now]
        for slot in self._slots:
            if slot.worker is not None:
                due.append(now + 1.0 if slot.job is None else slot.job.heard + self._patience(slot))
        if self._options.exit_after_idle is not None:
            due.append(self._busy_at + self._options.exit_after_idle)
        return min(max(min(due) - now, 0.0), TICK_SECONDS)

    # Sleeping.

    def _descriptors(self) -> list[int]:
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        return [self._wake_read, *(number for worker in workers for number in worker.descriptors())]

    def _select(self, descriptors: list[int], timeout: float) -> None:
        with selectors.DefaultSelector() as selector:
            for descriptor in descriptors:
                with contextlib.suppress(ValueError, OSError):
                    selector.register(descriptor, selectors.EVENT_READ)
            selector.select(timeout)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass


def watch(options: WatchOptions, console: Console) -> int:
    """Follow runs until asked to end; returns the exit code (see the module's docstring).

    The first SIGTERM or Ctrl-C ends it cleanly within five seconds, the second at once.

    Raises:
        RunError: another watcher holds a run, a run is missing (`once`), or workers cannot be started.
        ImagesError, DeviceError, OutputError: nothing can be measured at all.
    """
    monitor = Monitor(options, console)
    with _signals(monitor):
        return monitor.run()


@contextlib.contextmanager
def _signals(monitor: Monitor) -> Iterator[None]:
    """The first signal asks, the second one insists."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if monitor.stopping.is_set():
            os._exit(128 + number)  # workers end by themselves when their input closes
        monitor.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
