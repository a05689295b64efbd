"""The loop: look, let settle, evaluate, record, publish, judge. One thread decides; no torch in this process.

Exit codes of :func:`watch`:

    0    ended as asked: by a signal, `--exit-after-idle`, `--until-...`, or `--once` with everything measured
    3    `--once`, and at least one checkpoint could not be measured, or something was not looked at

Errors of the tree (errors.py) are raised: a held run, unusable images, a missing device.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dse_monitor.errors import OutputError, RunError
from dse_monitor.watch.console import Console, Header, Live, Notice, Problem
from dse_monitor.watch.dependencies import Clock, Dependencies
from dse_monitor.watch.lookout import Lookout
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.pool import WorkerPool
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.report import Report
from dse_monitor.watch.run.watched_run import WatchedRun
from dse_monitor.watch.workers import memory
from dse_monitor.watch.workers.child import Worker, WorkerProcess

BEAT_SECONDS = 10.0  # between heartbeats; chosen by us
REMIND_SECONDS = 60.0  # between checks for alerts that fall due by the clock alone; chosen by us
REFUSED_SECONDS = 60.0  # until a run that could not be opened is tried again; chosen by us
JUMP_SECONDS = 60.0  # s the wall clock may drift against the monotonic one before it is a jump; chosen by us
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


class _Alarm:
    """Ends a sleep from another thread or a signal handler: a pipe that is slept on."""

    def __init__(self) -> None:
        self.descriptor, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._write_end, b"x")

    def reset(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.descriptor, 4096):
                pass

    def close(self) -> None:
        for descriptor in (self.descriptor, self._write_end):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptor = self._write_end = -1  # the numbers soon belong to somebody else


def _sleep(descriptors: list[int], timeout: float) -> None:
    """Wait until one of these is readable, so many seconds at most."""
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            with contextlib.suppress(ValueError, OSError):
                selector.register(descriptor, selectors.EVENT_READ)
        selector.select(timeout)


class Monitor:
    """Follows the runs of its options until it is asked to end.

    Args:
        options: what the user asked for.
        console: where lines go.
        dependencies: what runs are watched with; the real ones if None.
        make_worker: starts a worker; a process of its own if None.
        clock: the time.
        sleep: waits for one of these file descriptors or so many seconds.

    Attributes:
        runs: what is watched, by folder.
        stopping: set once the watch is to end.
    """

    def __init__(
        self,
        options: WatchOptions,
        console: Console,
        *,
        dependencies: Dependencies | None = None,
        make_worker: Callable[[], Worker] | None = None,
        clock: Clock | None = None,
        sleep: Callable[[list[int], float], None] = _sleep,
    ):
        memory.keep_spare()
        self._options, self._console, self._sleep = options, console, sleep
        self._dependencies = dependencies or Dependencies.real()
        self._clock = clock or SystemClock()
        self._alarm = _Alarm()
        self._pool = WorkerPool(
            options.devices,
            console,
            self._clock,
            make_worker or (lambda: WorkerProcess.with_limits(options.manners)),
        )
        self._lookout = Lookout(options, self._dependencies, console, self._make_run)
        self.runs = self._lookout.runs
        self._refused: set[WatchedRun] = set()
        self._opened = 0
        self._next_beat = self._next_reminder = -math.inf
        self._unquiet = self._clock.monotonic()  # when a run last had something waiting
        self._drift = self._clock.time() - self._clock.monotonic()
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
                self._sleep([self._alarm.descriptor, *self._pool.descriptors()], timeout)
                self._alarm.reset()
        finally:
            self.close()
        incomplete = self._lookout.unlooked or bool(self._refused)
        incomplete |= any(run.failed or run.unlooked for run in self.runs.values())
        return EXIT_FAILED if self._options.once and incomplete else EXIT_OK

    def stop(self) -> None:
        """Ask for the end; may be called from a signal handler or another thread."""
        self.stopping.set()
        self.wake()

    def wake(self) -> None:
        """End the current sleep; may be called from another thread."""
        self._alarm.ring()

    def step(self) -> float | None:
        """Do everything that is due; seconds until the next time, None when the work is done."""
        now = self._clock.monotonic()
        self._lookout.look(now)
        runs = list(self.runs.values())
        for run in runs:
            self._poll(run)
        self._trim()
        self._pool.listen(runs)
        if not self.stopping.is_set():
            self._pool.dispatch(runs)
            self._pool.prepare(runs)
        self._check_clock()
        self._beat(now)
        if self._finished(now):
            return None
        return self._timeout()

    def close(self) -> None:
        """End workers and give every run back. A result that is not recorded yet is measured again later."""
        self.stopping.set()
        self._pool.close()
        for run in self.runs.values():
            run.close()
        self._console.close()
        self._alarm.close()

    def _make_run(self, folder: Path, out: Path, name: str) -> WatchedRun:
        return WatchedRun(
            RunContext(
                folder=folder,
                out=out,
                name=name,
                options=self._options,
                dependencies=self._dependencies,
                clock=self._clock,
                report=Report(self._console, name),
                wake=self.wake,
                elsewhere=lambda path: self._belongs_to_another(path, folder),
                cancelled=self.stopping.is_set,
            )
        )

    def _belongs_to_another(self, path: str, folder: Path) -> bool:
        """Whether a real path lies in a watched run other than the one with this folder."""
        others = (os.path.realpath(other) for other in self.runs if other != folder)
        ours = os.path.realpath(folder)
        return any(
            (path == other or path.startswith(other + "/")) and not ours.startswith(other + "/")
            for other in others
        )

    def _poll(self, run: WatchedRun) -> None:
        """Look for changes in a run. Of several, one that cannot be watched does not end the others."""
        try:
            run.poll()
        except (RunError, OutputError) as error:
            if self._lookout.is_given(run) or run.open:
                raise
            run.postpone(REFUSED_SECONDS)
            self._refused.add(run)
            text = f"{error}; trying again"
            self._console.problem(Problem(run=run.name, path="", reason=text, kind="refused"))
        else:
            if run.open:
                self._refused.discard(run)

    def _trim(self) -> None:
        """Give back what opening a run took."""
        opened = sum(run.open for run in self.runs.values())
        if opened > self._opened:
            memory.release()
        self._opened = opened

    def _check_clock(self) -> None:
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
        jobs = {job.run.folder: job for job in self._pool.jobs}
        reasons = self._pool.blocked_reasons()
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
        if self._pool.jobs:
            return False
        quiet = all(run.idle or run in self._refused for run in self.runs.values())
        if not quiet:
            self._unquiet = now
        options = self._options
        if options.once:
            waiting = [run for run in self.runs.values() if run not in self._refused]
            if not self.runs:
                chosen = " ".join(options.only)
                raise RunError(f"no run fits --run {chosen}; `dse-monitor runs` lists those found")
            missing = [run for run in waiting if not run.open and run.scans == 0]
            if missing:
                raise RunError(f"{missing[0].folder} does not exist; give the folder of a run")
            return quiet
        if options.exit_after_idle is not None and now - self._busy_until() >= options.exit_after_idle:
            self._console.notice(
                Notice(run="", text=f"nothing new for {options.exit_after_idle:.0f} s; ending as asked")
            )
            return True
        if (options.until_epoch is None and options.until_step is None) or not self.runs:
            return False
        return all(run.reached(options.until_epoch, options.until_step) for run in self.runs.values())

    def _busy_until(self) -> float:
        """When there was last something to do, monotonic seconds."""
        return max(self._unquiet, self._pool.active)

    def _timeout(self) -> float:
        now = self._clock.monotonic()
        due = [self._lookout.due, self._next_beat, self._next_reminder, self._pool.due()]
        due += [run.due for run in self.runs.values()]
        if self._options.exit_after_idle is not None:
            due.append(self._busy_until() + self._options.exit_after_idle)
        return min(max(min(due) - now, 0.0), TICK_SECONDS)


def watch(options: WatchOptions, console: Console) -> int:
    """Follow runs until asked to end; returns the exit code (see the module's docstring).

    The first SIGTERM or Ctrl-C ends it cleanly within five seconds, the second at once.

    Raises:
        RunError: another watcher holds a run, a run is missing (`once`), or workers cannot be started.
        ImagesError, DeviceError, OutputError: nothing can be measured at all.
    """
    monitor = Monitor(options, console)
    for source in dict.fromkeys(where for _, where in options.found):
        found = ", ".join(what for what, where in options.found if where == source)
        console.header(Header(label="options", text=found, aside=f"from {source}"))
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
