"""Results of several processes that score one run together, until a watcher takes them over.

Each process writes what it measured into a ledger of its own, ``<OUT>/shards/<launch>-<rank>/records.jsonl``,
in the same way and as safely as a watcher writes the run's. Whoever opens the run next under the same
options takes these results into the run's ledger, in training order and each content once, and removes the
folders: the last of the processes as a rule, else the next `dse-monitor watch` or `score`.

    kind        own fields
    measured    path, key, content_key, request, version, evaluation: as in the run's ledger, without a number
    done        world: the process has measured its share; so many processes there were
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dse_monitor
from dse_monitor.errors import RunError
from dse_monitor.runs.identity import Stamp
from dse_monitor.runs.ledger import NAME, Ledger
from dse_monitor.runs.locking import RunLock
from dse_monitor.runs.record import Evaluation, evaluation_from_json, to_json

FOLDER = "shards"  # below the run's output folder
MERGING = "merging"  # lock file of the process that takes over the results of a launch


@dataclass(frozen=True)
class Measured:
    """One checkpoint as a process measured it.

    Attributes:
        path: relative to the run.
        stamp: the version that was measured.
        content_key: see identity.content_key.
        request: see options.WatchOptions.request.
        evaluation: what came out; without a sequence number.
    """

    path: str
    stamp: Stamp
    content_key: str | None
    request: str
    evaluation: Evaluation


class Shard:
    """The writer's side: one process of one launch.

    Args:
        out: the run's output folder.
        launch: name that all processes of a launch share.
        rank: number of this process.

    Raises:
        RunError: another process has this place.
        OutputError: the folder cannot be written.
    """

    def __init__(self, out: Path, launch: str, rank: int):
        self._folder = out / FOLDER / f"{launch}-{rank}"
        self._lock = RunLock(self._folder)
        self._lock.take()
        self._ledger = Ledger.open(self._folder)

    def add(self, item: Measured) -> None:
        """Keep a result.

        Raises:
            RunError: the disk does not take it.
        """
        data = {
            "path": item.path,
            "key": item.stamp.to_list(),
            "content_key": item.content_key,
            "request": item.request,
            "version": dse_monitor.__version__,
            "evaluation": to_json(item.evaluation),
        }
        if not self._ledger.append("measured", data):
            raise RunError(f"{self._ledger.path} cannot be written: {self._ledger.error}")

    def finish(self, world: int) -> None:
        """Say that the share is measured, and let go."""
        self._ledger.append("done", {"world": world})
        self.close()

    def close(self) -> None:
        """Let go without having finished."""
        self._ledger.close()
        self._lock.release()


def measured(out: Path) -> Iterator[Measured]:
    """Every result that waits to be taken over, whatever it was measured with."""
    for folder in _folders(out):
        for fact in Ledger(folder / NAME).facts():
            if fact.kind == "measured":
                data = fact.data
                with contextlib.suppress(KeyError, TypeError, ValueError):  # not one of ours
                    stamp = Stamp.from_list(data["key"])
                    found = evaluation_from_json(data["evaluation"])
                    found = dataclasses.replace(found, wall_time=found.wall_time or fact.time)
                    if not math.isfinite(found.source.mtime):
                        source = dataclasses.replace(found.source, mtime=stamp.mtime_ns / 1e9)
                        found = dataclasses.replace(found, source=source)
                    yield Measured(data["path"], stamp, data["content_key"], data["request"], found)


def all_done(out: Path, launch: str, world: int) -> bool:
    """Whether every process of a launch has measured its share."""
    return all(
        any(fact.kind == "done" for fact in Ledger(out / FOLDER / f"{launch}-{rank}" / NAME).facts())
        for rank in range(world)
    )


def clear(out: Path, request: str) -> None:
    """Remove what was taken over: folders of this request whose process has ended."""
    for folder in _folders(out):
        lock = RunLock(folder)
        with contextlib.suppress(RunError, OSError):
            lock.take()  # RunError: its process is at work
            try:
                facts = list(Ledger(folder / NAME).facts())
                if all(fact.data.get("request") == request for fact in facts if fact.kind == "measured"):
                    shutil.rmtree(folder)
            finally:
                lock.release()
    if _folders(out):
        return
    with contextlib.suppress(OSError):  # somebody begins just now
        (out / FOLDER / MERGING).unlink(missing_ok=True)
        (out / FOLDER).rmdir()


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[bool]:
    """Whether this process is the one of its launch to take over the results; held until the block ends."""
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / FOLDER / MERGING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # no such locks here: the run's own lock decides
            pass
        yield True
    finally:
        os.close(descriptor)


def _folders(out: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder for folder in (out / FOLDER).iterdir() if (folder / NAME).is_file())
    return []
