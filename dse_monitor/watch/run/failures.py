"""Failures that the watcher records itself, and which of all failures are final."""

from __future__ import annotations

import dse_monitor
from dse_monitor import errors
from dse_monitor.runs.identity import Stamp
from dse_monitor.runs.record import Evaluation, Source

WORKER_CRASH = "WorkerCrash"  # error of a checkpoint that kills its reader
INCOMPLETE = "IncompleteCheckpoint"  # error of a checkpoint whose writer left it unfinished
CRASHES = 2  # times a checkpoint may kill the worker; chosen by us
TORN = (INCOMPLETE, "CorruptCheckpoint")  # errors that a file still being rewritten shows as well


def failure(path: str, stamp: Stamp, reason: str, error: str, now: float) -> Evaluation:
    """The evaluation of a checkpoint that could not be measured.

    Args:
        path: of the checkpoint, relative to the run.
        stamp: the version meant.
        reason: why, for people.
        error: name of the error.
        now: seconds since 1970.
    """
    source = Source(path=path, size=stamp.size, mtime=stamp.mtime_ns / 1e9)
    return Evaluation(status="failed", source=source, reason=reason, error=error, wall_time=now)


def crash(path: str, stamp: Stamp, reason: str, now: float) -> Evaluation:
    """The evaluation of a checkpoint that killed its worker as often as it may; see :func:`failure`."""
    text = f"{path}: {reason}, {CRASHES} times; not tried again until the file changes"
    return failure(path, stamp, text, WORKER_CRASH, now)


def is_final(failed: Evaluation, version: str | None) -> bool:
    """Whether a failure follows from the file alone, so that it is not worth another try after a restart.

    Another version of this program may read more; and an error nobody foresaw may be the machine's fault.

    Args:
        failed: the evaluation on record.
        version: of the program that recorded it.
    """
    foreseen = failed.error == WORKER_CRASH or hasattr(errors, failed.error)
    return foreseen and version == dse_monitor.__version__
