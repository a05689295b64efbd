"""The memory of a watcher: one append-only file of facts beside the run, `records.jsonl`.

Every line is one JSON object: `v` (schema), `kind`, `t` (seconds since 1970), the kind's own fields. A line
is on disk (fsync) before anything else is done with it, so a watcher killed at any moment neither loses nor
repeats a score.

    kind        own fields
    watch       host, pid, version, request, probe (what is measured), asked (device, alert, link where not
                the defaults): a watcher began
    scored      evaluation (see record.py), seq, key, request, ...: measured
    failed      the same: could not be measured, evaluation.reason says why
    invalid     the same: measured, but the number means nothing
    alias       path, key, of: this file has the content of the evaluation with seq `of`
    crash       path, key, reason: the worker died on it
    lost        path: gone before it could be read
    published   seq: everything up to here is in the event data
    alert       alert (see record.py)
    delivery    facts of the alerts' outbox
    run         id: what the run is called for good, wherever its folder goes
    unit        unit, why: what bare numbers in the names of checkpoints count; the newest holds for all

Kinds a reader does not know are kept and ignored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dse_monitor.errors import OutputError, RunError
from dse_monitor.metric.components import Components
from dse_monitor.runs import units
from dse_monitor.runs.identity import Stamp
from dse_monitor.runs.record import (
    OUTPUT_FOLDER,
    SCHEMA,
    Alert,
    Evaluation,
    alert_from_json,
    evaluation_from_json,
    to_json,
)

NAME = "records.jsonl"
EVALUATIONS = ("scored", "failed", "invalid")  # kinds that hold an evaluation
PENDING_LIMIT = 1000  # facts kept in memory while the disk refuses them; ours, about 1.5 MB


@dataclass(frozen=True)
class Fact:
    """One line of the ledger.

    Attributes:
        kind: what happened; see the module's docstring.
        time: when, seconds since 1970 by the watcher's clock.
        data: the kind's own fields.
        record: the evaluation or alert among them.
    """

    kind: str
    time: float
    data: dict[str, Any]
    record: Evaluation | Alert | None = None

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation of a fact of one of those kinds."""
        assert isinstance(self.record, Evaluation)
        return self.record

    @property
    def alert(self) -> Alert:
        """The alert of a fact of that kind."""
        assert isinstance(self.record, Alert)
        return self.record


@dataclass(frozen=True)
class LedgerView:
    """A ledger as a reader sees it; no lock is needed to make one.

    Attributes:
        evaluations: every evaluation in the order of recording; names found later are in ``source.aliases``.
        alerts: every alert in the order it was recorded.
        facts: all other facts in order, ``published`` left out.
        warnings: lines that could not be read, in words.
    """

    evaluations: tuple[Evaluation, ...] = ()
    alerts: tuple[Alert, ...] = ()
    facts: tuple[Fact, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def settings(self) -> tuple[str, ...]:
        """Fingerprints of the settings in use, oldest first."""
        return tuple(dict.fromkeys(e.settings.fingerprint for e in self.evaluations if e.settings))


class Ledger:
    """The writer's side of a ledger. One per run folder; the caller holds the lock (see locking.py).

    When the disk refuses a line, the fact waits in memory (``pending`` of them) and :meth:`retry` writes it
    later; facts stay in order. ``append`` may be called from several threads.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time):
        self.path = path
        self.warnings: list[str] = []
        self._clock = clock
        self._mutex = threading.Lock()
        self._unwritten: deque[bytes] = deque()
        self._descriptor = -1
        self._error: OSError | None = None

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], float] = time.time) -> Ledger:
        """Open or create the ledger in ``folder``; a last line torn by a crash is copied aside and removed.

        Raises:
            OutputError: the folder or the file cannot be created or written.
        """
        ledger = cls(Path(folder) / NAME, clock)
        try:
            ledger._open()
        except OSError as error:
            raise OutputError(f"{ledger.path} cannot be opened for writing: {error.strerror}") from error
        return ledger

    @property
    def pending(self) -> int:
        """Facts that are in memory only, because the disk refused them."""
        return len(self._unwritten)

    @property
    def full(self) -> bool:
        """Whether memory holds as many unwritten facts as it may: score nothing more."""
        return len(self._unwritten) >= PENDING_LIMIT

    @property
    def error(self) -> OSError | None:
        """Why facts are pending."""
        return self._error

    def append(self, kind: str, data: dict[str, Any], *, sync: bool = True) -> bool:
        """Add one fact; True when it (and all before it) is on disk, False when it waits in memory."""
        line = json.dumps({"v": SCHEMA, "kind": kind, "t": self._clock(), **data}, separators=(",", ":"))
        with self._mutex:
            self._unwritten.append(line.encode() + b"\n")
            return self._drain(sync)

    def append_evaluation(self, evaluation: Evaluation, extra: dict[str, Any], *, sync: bool = True) -> bool:
        """Add an evaluation; its kind is its status."""
        return self.append(
            evaluation.status, {"seq": evaluation.seq, **extra, "evaluation": to_json(evaluation)}, sync=sync
        )

    def append_alert(self, alert: Alert) -> bool:
        """Add an alert."""
        return self.append("alert", {"seq": alert.seq, "alert": to_json(alert)})

    def retry(self) -> bool:
        """Try again to write what is pending; True when nothing is left."""
        with self._mutex:
            return self._drain(True)

    def facts(self) -> Iterator[Fact]:
        """What is on disk, line by line; unreadable lines are skipped and named in ``warnings``."""
        warnings: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            yield from _read(self.path, warnings)
        self.warnings = warnings

    def unit(self) -> dict[str, Any] | None:
        """Data of the newest fact about the unit of bare numbers; None if there is none."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as lines:
            found = _newest(lines, "unit")
            return None if found is None else found.data
        return None

    @property
    def moved(self) -> bool:
        """Whether the file was removed or replaced by somebody since it was opened."""
        try:
            ours, there = os.fstat(self._descriptor), self.path.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False  # an unreachable disk says nothing about the file
        return (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino)

    def close(self) -> None:
        """Write what can be written and close the file."""
        with self._mutex:
            if self._descriptor >= 0:
                self._drain(True)
                os.close(self._descriptor)
                self._descriptor = -1

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        created = not self.path.exists()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if created:
            _sync_folder(self.path.parent)
        else:
            self._mend_tail()

    def _mend_tail(self) -> None:
        """Give a whole last line its newline; copy a torn one aside and cut it off."""
        size = os.fstat(self._descriptor).st_size
        start, tail = _last_line(self._descriptor, size)
        if not tail or tail.endswith(b"\n"):
            return
        if _parse(tail) is not None:
            os.write(self._descriptor, b"\n")
        else:
            aside = self.path.with_name(f"{NAME}.torn-{start}")
            aside.write_bytes(tail)
            os.ftruncate(self._descriptor, start)
        os.fsync(self._descriptor)

    def _drain(self, sync: bool) -> bool:
        while self._unwritten:
            try:
                self._write(self._unwritten[0], sync)
            except OSError as error:
                self._error = error
                return False
            self._unwritten.popleft()
        self._error = None
        return True

    def _write(self, line: bytes, sync: bool) -> None:
        """Write one line or leave the file as it was."""
        if self._descriptor < 0:
            raise OSError(errno.EBADF, "the ledger is closed")
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):  # the disk became full inside the line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise


def find(run: Path) -> Path | None:
    """The folder that holds a run's ledger: the one given, or ``dse`` below it; None if neither does."""
    return next((folder for folder in (run, run / OUTPUT_FOLDER) if (folder / NAME).is_file()), None)


def read(folder: Path) -> LedgerView:
    """Read the ledger in ``folder`` (the output folder itself, usually ``<RUN>/dse``) without any lock.

    A last line that is still being written is ignored.

    Raises:
        RunError: there is no ledger, or a newer version of this program wrote it.
    """
    path = Path(folder) / NAME
    warnings: list[str] = []
    try:
        view = _view(_read(path, warnings))
    except FileNotFoundError:
        raise RunError(
            f"{folder} holds no {NAME}: nothing was watched there yet. Expected the output folder of "
            f"`dse-monitor watch`, usually RUN/dse"
        ) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    return dataclasses.replace(view, warnings=tuple(warnings))


def newest(folder: Path, kind: str) -> Fact | None:
    """The newest fact of a kind in the ledger in ``folder``, found without reading the others.

    None if there is no such fact, no ledger, or one that cannot be read.
    """
    with contextlib.suppress(OSError), (Path(folder) / NAME).open("rb") as lines:
        return _newest(lines, kind)
    return None


def next_sequence(last: int, now: float) -> int:
    """The number of a new record: microseconds since 1970, but always above the last one."""
    return max(last + 1, int(now * 1e6))


def _view(facts: Iterable[Fact]) -> LedgerView:
    evaluations: list[Evaluation] = []
    position: dict[int, int] = {}
    alerts, others = [], []
    for fact in facts:
        if fact.kind in EVALUATIONS:
            evaluation = fact.evaluation
            position[evaluation.seq] = len(evaluations)
            evaluations.append(evaluation)
        elif fact.kind == "alert":
            alerts.append(fact.alert)
        elif fact.kind != "published":
            others.append(fact)
        if fact.kind == "alias" and fact.data.get("of") in position:
            at = position[fact.data["of"]]
            evaluations[at] = with_alias(evaluations[at], fact.data["path"])
    return LedgerView(tuple(evaluations), tuple(alerts), tuple(others))


def with_alias(evaluation: Evaluation, path: str) -> Evaluation:
    """The evaluation with one more name of its file."""
    source = evaluation.source
    if path == source.path or path in source.aliases:
        return evaluation
    return dataclasses.replace(
        evaluation, source=dataclasses.replace(source, aliases=(*source.aliases, path))
    )


def _read(path: Path, warnings: list[str]) -> Iterator[Fact]:
    with path.open("rb") as lines:
        found = _newest(lines, "unit")
        unit = "" if found is None else str(found.data.get("unit", ""))
        for number, line in enumerate(lines, 1):
            fact = _parse(line)
            if unit and fact is not None and fact.kind in EVALUATIONS:
                fact = dataclasses.replace(fact, record=units.in_unit(fact.evaluation, unit))
            if fact is None and not line.endswith(b"\n"):
                return  # being written, or torn by a crash: mended by the next writer
            if fact is None:
                warnings.append(f"{path}, line {number}: not a record, skipped ({len(line)} bytes)")
            elif fact.data.pop("v") > SCHEMA:
                raise RunError(
                    f"{path}, line {number}: written by a newer dse-monitor (schema above {SCHEMA}); "
                    f"update this installation to read it"
                )
            else:
                yield fact


def _newest(lines: BinaryIO, kind: str) -> Fact | None:
    """The newest fact of a kind; the file is at its start afterwards."""
    found, mark = None, f'"kind":"{kind}"'.encode()
    for line in lines:
        if mark in line[:64]:
            found = _parse(line) or found
    lines.seek(0)
    return found


def _parse(line: bytes) -> Fact | None:
    """A line as a fact (its ``v`` still among the data), or None when it is none."""
    try:
        data = json.loads(line)
        kind, when, record = str(data.pop("kind")), float(data.pop("t")), None
        if not isinstance(data["v"], int):
            return None
        if data.get("key") is not None:
            Stamp.from_list(data["key"])  # raises where it is none, before anybody relies on it
        if data["v"] <= SCHEMA and kind in EVALUATIONS:
            record = evaluation_from_json(data["evaluation"])
            if not _is_numeric(record):
                return None
        elif data["v"] <= SCHEMA and kind == "alert":
            record = alert_from_json(data["alert"])
        return Fact(kind, when, data, record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


_COMPONENTS = tuple(field.name for field in dataclasses.fields(Components))


def _is_numeric(record: Evaluation) -> bool:
    """Whether the numbers of a record are numbers, before anybody computes with them."""
    values = [record.source.epoch, record.source.step, record.source.mtime, record.wall_time, record.seq]
    if record.components is not None:
        values += [getattr(record.components, name) for name in _COMPONENTS]
    return all(value is None or isinstance(value, (int, float)) for value in values)


def _last_line(descriptor: int, size: int) -> tuple[int, bytes]:
    """Offset and bytes of the last line, newline included if it has one."""
    start, tail = size, b""
    while start > 0:
        step = min(start, 65536)
        start -= step
        tail = os.pread(descriptor, step, start) + tail
        cut = tail.rfind(b"\n", 0, len(tail) - 1)
        if cut >= 0:
            return start + cut + 1, tail[cut + 1 :]
    return 0, tail


def _sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut, where the filesystem can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
