"""Scoring a run with many processes: `torchrun ... -m dse_monitor score RUN`.

The first process lists what `watch --once` would measure now; the list is broadcast, and each process takes
every N-th checkpoint of it. That is all they say to each other: a process that dies keeps nobody waiting.
Results go to a ledger per process (shards.py). The last to finish takes all of them over, in the order and
with the words of `watch --once`. If a process died, the same command, with any number of processes, measures
what is missing.
"""

from __future__ import annotations

import dataclasses
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from dse_monitor import errors
from dse_monitor.errors import DSEError, RunError
from dse_monitor.runs.identity import Stamp
from dse_monitor.runs.record import Evaluation, evaluation_from_json
from dse_monitor.watch import monitor, pool, shards
from dse_monitor.watch.console import Console, Header, Notice, Problem, Row
from dse_monitor.watch.dependencies import Dependencies
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.run import failures, jobs
from dse_monitor.watch.run.context import RunContext
from dse_monitor.watch.run.report import Report
from dse_monitor.watch.run.watched_run import WatchedRun
from dse_monitor.watch.workers.child import Worker, WorkerEnd, WorkerProcess

LOOK_SECONDS = 1.0  # between checks whether a worker still lives


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def of_this_process(cls) -> Place:
        """From torchrun's variables; without torchrun there is one process."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not all(name in os.environ for name in names):
            return cls()
        return cls(*(int(os.environ[name]) for name in names))


def score(
    options: WatchOptions,
    console: Console,
    report: Callable[[Place, Evaluation], None],
    *,
    make_worker: Callable[[], Worker] | None = None,
) -> int:
    """Measure this process's share of a run; the last process publishes. Returns the exit code.

    Args:
        options: of one run, with `once` and one device.
        console: for what is published.
        report: called with this process's place and each result.
        make_worker: starts a worker; a process of its own if None.

    Raises:
        RunError: a watcher holds the run, or it does not exist.
        ImagesError, DeviceError, OutputError: nothing can be measured.
    """
    place = Place.of_this_process()
    dealt = _from_the_first(place, lambda: deal(options, console))
    if "error" in dealt:
        raise getattr(errors, dealt["error"], RunError)(dealt["reason"])
    measure_share(dealt, place, options, report, make_worker)
    return publish(dealt["launch"], place, options, console)


def measure_share(
    dealt: dict[str, Any],
    place: Place,
    options: WatchOptions,
    report: Callable[[Place, Evaluation], None],
    make_worker: Callable[[], Worker] | None = None,
) -> None:
    """Measure every N-th checkpoint of what was dealt."""
    device = _device(options.devices[0], place)
    start = make_worker or (lambda: WorkerProcess.with_limits(options.manners))
    shard = shards.Shard(_out(options), dealt["launch"], place.rank)
    try:
        for item in _measured(dealt["tasks"][place.rank :: place.world], options, device, start):
            shard.add(item)
            report(place, item.evaluation)
        shard.finish(place.world)
    finally:
        shard.close()


def publish(launch: str, place: Place, options: WatchOptions, console: Console) -> int:
    """Take all results over if this process is the last; measures what appeared or changed meanwhile."""
    out = _out(options)
    if not shards.all_done(out, launch, place.world):
        return monitor.EXIT_OK
    with shards.only_one(out) as chosen:
        if not chosen or not shards.all_done(out, launch, place.world):  # a faster one was here
            return monitor.EXIT_OK
        return monitor.watch(options, console)


def deal(options: WatchOptions, console: Console) -> dict[str, Any]:
    """What is to be measured, in training order; results that an earlier launch left are taken over first.

    Raises:
        RunError: a watcher holds the run, or it does not exist.
    """
    (folder,) = options.runs
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; expected the folder of a run's checkpoints")
    clock = monitor.SystemClock()
    run = WatchedRun(
        RunContext(
            folder=folder,
            out=_out(options),
            name=folder.name,
            options=options,
            dependencies=Dependencies.real(),
            clock=clock,
            report=Report(_WithoutHeader(console), folder.name),
        )
    )
    try:
        while not run.scans or run.settling:
            run.poll()
            time.sleep(min(max(run.due - clock.monotonic(), 0.0), LOOK_SECONDS))
        tasks, known = [], set()
        while (candidate := run.next()) is not None:
            stamp = candidate.stamp
            same_bytes = ("bytes", stamp.inode, stamp.size, stamp.mtime_ns)
            twins = {same_bytes, ("key", candidate.content_key or stamp)}
            if not twins & known:
                tasks.append([candidate.path, stamp.to_list(), candidate.content_key])
            known |= twins
    finally:
        run.close()
    return {"launch": uuid4().hex[:12], "tasks": tasks}


def _from_the_first(place: Place, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the first process makes, sent to all; its error is sent as well, so that all end."""

    def attempt() -> dict[str, Any]:
        try:
            return make()
        except DSEError as error:
            return {"error": type(error).__name__, "reason": str(error)}

    if place.world == 1:
        return attempt()
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        sent = [attempt() if place.rank == 0 else None]
        dist.broadcast_object_list(sent, src=0)
    finally:
        dist.destroy_process_group()
    assert sent[0] is not None
    return sent[0]


def _device(name: str, place: Place) -> str:
    """Of several GPUs on a machine, each process takes its own."""
    if place.world == 1 or name not in ("auto", "cuda"):
        return name
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{place.local_rank % count}" if count else name


def _measured(
    tasks: list[list[Any]], options: WatchOptions, device: str, start: Callable[[], Worker]
) -> Iterator[shards.Measured]:
    (folder,) = options.runs
    measuring = jobs.measuring(options, _out(options), device)
    worker = _BlockingWorker(start)
    try:
        for name, stamp, key in tasks:
            job = {"path": str(folder / name), "name": name, "stamp": stamp, **measuring}
            evaluation = worker(job)
            if evaluation is None:  # gone or rewritten: whoever publishes looks again
                continue
            reason = evaluation.reason.replace(f"{folder}/", "")
            source = dataclasses.replace(evaluation.source, path=name)
            evaluation = dataclasses.replace(evaluation, source=source, reason=reason)
            yield shards.Measured(name, Stamp.from_list(stamp), key, options.request, evaluation)
    finally:
        worker.stop()


def _out(options: WatchOptions) -> Path:
    (folder,) = options.runs
    return options.output(folder)


class _WithoutHeader(Console):
    """Says what the console says, but the header: that comes with the results."""

    def __init__(self, console: Console):
        self._console = console
        self.several = console.several

    def header(self, line: Header) -> None:
        """Nothing."""

    def row(self, row: Row) -> None:
        """Say a result that an earlier launch left."""
        self._console.row(row)

    def problem(self, problem: Problem) -> None:
        """Say a problem."""
        self._console.problem(problem)

    def notice(self, notice: Notice) -> None:
        """Say a notice."""
        self._console.notice(notice)


class _BlockingWorker:
    """A worker that is waited for, and started again when a checkpoint kills it."""

    def __init__(self, start: Callable[[], Worker]):
        self._start = start
        self._worker: Worker | None = None
        self._number = 0

    def __call__(self, job: dict[str, Any]) -> Evaluation | None:
        """Measure a checkpoint; None when this version of it is not there any more.

        Raises:
            DSEError: nothing can be measured, whatever the checkpoint.
        """
        reason = ""
        for _ in range(failures.CRASHES):
            answer = self._ask(job)
            if isinstance(answer, WorkerEnd):
                reason = answer.words
                continue
            if "evaluation" in answer:
                return evaluation_from_json(answer["evaluation"])
            if "error" in answer:
                raise getattr(errors, answer["error"], RunError)(answer["reason"])
            return None
        return failures.crash(job["name"], Stamp.from_list(job["stamp"]), reason, time.time())

    def stop(self, *, kill: bool = False) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.stop(kill=kill)
            self._worker = None

    def _ask(self, job: dict[str, Any]) -> dict[str, Any] | WorkerEnd:
        """The final answer to a job, or how the worker ended before it."""
        busy = 0
        while True:
            self._number += 1
            self._worker = self._worker or self._start()
            self._worker.send({**job, "job": self._number})
            answer = self._answer()
            if isinstance(answer, WorkerEnd) or "busy" not in answer:
                return answer
            pauses = pool.BACK_OFF_SECONDS
            time.sleep(pauses[min(busy, len(pauses) - 1)])
            busy += 1

    def _answer(self) -> dict[str, Any] | WorkerEnd:
        assert self._worker is not None
        heard = time.monotonic()
        while True:
            ended = self._worker.ended()  # asked first: what it wrote before its end is read below
            for answer in self._worker.receive():
                heard = time.monotonic()
                if "warning" in answer:
                    print(answer["warning"], file=sys.stderr, flush=True)
                elif answer.get("job") == self._number and not ({"progress", "device"} & answer.keys()):
                    return answer
            silent = time.monotonic() - heard
            if ended is not None or silent > pool.JOB_SECONDS:
                self.stop(kill=True)
                return ended or WorkerEnd.silent(silent)
            select.select(self._worker.descriptors(), [], [], LOOK_SECONDS)
