"""One watched run: its folder, its ledger, and what happens to each checkpoint in between.

Order of every result: ledger (on disk) first, then event data, then best.json, then alerts. A watcher that is
killed in between publishes the rest when it starts again, because all of it is derived from the ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dse_monitor
from dse_monitor import errors
from dse_monitor.evaluation.config import Placement
from dse_monitor.runs import heartbeat
from dse_monitor.runs.history import History
from dse_monitor.runs.identity import Stamp, content_key, stamp
from dse_monitor.runs.ledger import EVALUATIONS, Fact, Ledger
from dse_monitor.runs.locking import RunLock
from dse_monitor.runs.record import Alert, Evaluation, Source
from dse_monitor.watch import shards
from dse_monitor.watch.console import Console
from dse_monitor.watch.dependencies import Clock, Parts
from dse_monitor.watch.files import mounts
from dse_monitor.watch.files.aside import Aside
from dse_monitor.watch.files.scanner import Scan, Scanner
from dse_monitor.watch.files.settle import Settled, Settler
from dse_monitor.watch.files.versions import Versions
from dse_monitor.watch.files.waiting import Candidate, Filter, Queue, count_done, in_training_order
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.run import requests
from dse_monitor.watch.run.publication import Publication
from dse_monitor.watch.run.report import Report

if TYPE_CHECKING:
    from dse_monitor.watch.files.hints import Hints

SCAN_SECONDS = 15.0  # between looks at a local folder; ours
UNSETTLED_SECONDS = 5.0  # the same while a file is being written and no events come; ours
NETWORK_SECONDS = 60.0  # the same on a network disk when nothing happens; ours
DEEP_SECONDS = 120.0  # between scans that look at every known file again, where events come; ours
HINT_SECONDS = 0.5  # between scans that an event asked for; ours
SLOW_SECONDS = 60.0  # s without growth after which an incomplete file is worth a line; ours
TORN_TRIES = 3  # times a file is read whose bytes contradict themselves, before it is given up; ours
WORKER_CRASH = "WorkerCrash"  # error of a checkpoint that kills its reader
CRASHES = 2  # times a checkpoint may kill the worker; ours
TORN = ("IncompleteCheckpoint", "CorruptCheckpoint")  # errors that a file still being rewritten shows as well


class WatchedRun:
    """A run under watch. Nothing here blocks for long and no torch is loaded.

    Args:
        folder: the run's folder; need not exist yet.
        out: its output folder.
        name: how it is called.
        options: what is asked for.
        console: says things.
        parts: what it is watched with.
        clock: the time.
        wake: called from another thread when something changed.
        cancelled: whether the watcher is asked to end.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        name: str,
        options: WatchOptions,
        console: Console,
        parts: Parts,
        clock: Clock,
        wake: Callable[[], None] = lambda: None,
        cancelled: Callable[[], bool] = lambda: False,
    ):
        self.folder, self.out, self.name = folder, out, name
        self._options, self._parts, self._clock = options, parts, clock
        self._wake, self._cancelled = wake, cancelled
        self._report = Report(console, name)
        self._since = clock.time()
        self._filter = Filter(options, parts.from_name, self._since)
        self._network = False
        self._hints: Hints | None = None
        self.open = False
        self.served = -math.inf  # when a worker last got a job of this run, monotonic seconds
        self.failed: set[str] = set()  # paths that could not be measured
        self._clear()

    def _clear(self) -> None:
        """Forget everything that a ledger and a folder tell anew."""
        self.history = History()
        self.alerts: list[Alert] = []
        self.queue = Queue(once=self._options.once)
        self.scans = 0
        self._versions = Versions()
        self._scanner = Scanner(self.folder, self._parts.is_candidate, self._parts.is_rolling, skip=self.out)
        self._settler = self._make_settler("")
        self._torn: dict[str, int] = {}
        self._passed: dict[str, int] = {}
        self._next_scan = self._last_scan = self._last_deep = -math.inf

    # Opening and closing.

    def prepare(self) -> bool:
        """Open the run if its folder is there; False while it is not.

        Raises:
            RunError: another watcher holds it.
            OutputError: the output folder cannot be written.
        """
        if self.open:
            return True
        if not self.folder.is_dir():
            self._report.once("missing", f"{self.folder} does not exist yet; waiting for it")
            return False
        self._clear()
        self._lock = RunLock(self.out)
        dead = self._lock.take(heartbeat=self.out / heartbeat.NAME)
        try:
            self._ledger = Ledger.open(self.out, self._clock.time)
            self._replay(taken_over=dead is not None)
        except BaseException:
            self._lock.release()
            raise
        self.open = True
        self._report.over("missing")
        self._listen()
        return True

    def _replay(self, *, taken_over: bool) -> None:
        """Learn from the ledger what was done, and publish what a killed watcher did not."""
        others: dict[str, list[dict[str, Any]]] = {"silence": [], "delivery": [], "watch": []}
        for fact in self._ledger.facts():
            if fact.kind in EVALUATIONS:
                self._learn(fact)
            elif fact.kind == "alias":
                self._learn_alias(fact)
            elif fact.kind == "crash":
                self._versions.crashed(Stamp.from_list(fact.data["key"]), fact.data.get("content_key"))
            elif fact.kind == "alert":
                self.alerts.append(fact.alert)
            elif fact.kind in others:
                others[fact.kind].append(fact.data)
        for warning in self._ledger.warnings:
            self._report.problem("", warning, "ledger")
        before = others["watch"][-1].get("request") if others["watch"] else None
        self._report.header(
            self.folder,
            self.out,
            self.history,
            self._options.config,
            other_settings=before not in (None, self._options.request),
        )
        me = heartbeat.new(dse_monitor.__version__, self._clock.time())
        data = {"host": me.host, "pid": me.pid, "version": me.version, "taken_over": taken_over}
        self._ledger.append(
            "watch", {**data, "request": self._options.request, "probe": self._options.config.to_json()}
        )
        self._aside = Aside(self.folder, self.out, self._options.copy_aside)
        self.publication = Publication(
            self.folder,
            self.out,
            self.name,
            self._options,
            self._parts,
            self._clock,
            self._ledger,
            self.history,
            self.alerts,
            self._report,
            self.locate,
            self._cancelled,
        )
        self.publication.resume(others["silence"], [data["delivery"] for data in others["delivery"]])
        self._take_over_shards()

    def _take_over_shards(self) -> None:
        """Record what several processes measured together, as if it had been measured here."""
        found: dict[Candidate, Evaluation] = {}
        for item in shards.measured(self.out):
            if item.request == self._options.request:
                found[self._candidate(item.path, item.stamp, item.content_key, 0)] = item.evaluation
        for candidate in in_training_order(found):
            seq = self._versions.find(candidate.path, candidate.stamp)
            if seq is None:
                seq = self._versions.find_key(candidate.content_key)
            if seq is None:
                self._record_once(candidate, found[candidate])
        if not self._ledger.pending:
            shards.clear(self.out, self._options.request)

    def _learn(self, fact: Fact) -> None:
        evaluation = fact.evaluation
        self.history.append(evaluation)
        self._versions.add_content(evaluation)
        again = evaluation.status == "failed" and not _is_final(evaluation, fact.data.get("version"))
        if fact.data.get("request") == self._options.request and not again and fact.data.get("key"):
            mark = Stamp.from_list(fact.data["key"])
            self._versions.add(evaluation.source.path, mark, evaluation.seq, fact.data.get("content_key"))

    def _learn_alias(self, fact: Fact) -> None:
        with contextlib.suppress(KeyError):  # the line it refers to could not be read
            self.history.alias(fact.data["of"], fact.data["path"])
            if fact.data.get("request") == self._options.request:
                mark = Stamp.from_list(fact.data["key"])
                self._versions.add(fact.data["path"], mark, fact.data["of"], fact.data.get("content_key"))

    def _listen(self) -> None:
        kind = mounts.filesystem(self.folder)
        self._network = mounts.is_network(kind)
        self._settler = self._make_settler(kind)
        if self._options.poll_seconds is not None or self._options.once or self._parts.hints is None:
            return
        if self._network:
            text = f"{kind} sends no change events; looking every {NETWORK_SECONDS:.0f} s"
            self._report.once("network", text)
            return
        try:
            self._hints = self._parts.hints(self.folder, self._wake, self.out)
            self._hints.start()
        except OSError as error:
            self._hints = None
            reason = error.strerror or str(error)
            self._report.once("hints", f"no change events ({reason}); looking every {SCAN_SECONDS:.0f} s")

    def _make_settler(self, kind: str) -> Settler:
        settle = self._options.settle_seconds
        return Settler(
            self.folder,
            mounts.settle_seconds(kind) if settle is None else settle,
            self._parts.check_complete,
            impatient=self._options.once,
        )

    def close(self, timeout: float = 2.0) -> None:
        """Write the last word and give everything back; alerts get so many seconds to be delivered."""
        if not self.open:
            return
        self.open = False
        self._deafen()
        self._ledger.retry()
        self.publication.close(timeout)
        with contextlib.suppress(OSError):
            self._heartbeat("ended").write(self.out)
        self._ledger.close()
        self._lock.release()

    def _suspend(self, now: float) -> None:
        """The folder is gone: hold nothing of it, so that it can come back as it likes."""
        self.open = False
        self._deafen()
        self.publication.drop()
        self._ledger.close()
        self._lock.release()
        self._clear()
        self._next_scan = now + UNSETTLED_SECONDS

    def _deafen(self) -> None:
        if self._hints is not None:
            self._hints.stop()
            self._hints = None

    # Looking.

    def due(self) -> float:
        """When this run wants to be looked after again, monotonic seconds."""
        if not self.open:
            return self._next_scan
        settle = self._settler.due()
        return min(self._next_scan, math.inf if settle is None else settle, self.publication.due)

    def tend(self) -> None:
        """Look for changes as far as it is due.

        Raises:
            RunError, OutputError: see :meth:`prepare`.
        """
        now = self._clock.monotonic()
        self._take_hints(now)
        if now >= self._next_scan:
            if not self.prepare():
                self._next_scan = now + (self._options.poll_seconds or UNSETTLED_SECONDS)
                return
            self._scan(now)
        if not self.open:
            return
        for settled in self._settler.step(now):
            self._settled(settled)
        for file in self._settler.waiting.values():
            if file.tests and now - file.since > SLOW_SECONDS:
                key = f"slow {file.path} {file.stamp.mtime_ns}"
                self._report.once(key, f"waiting: {file.path} {file.reason}")
        if now >= self.publication.due:
            self.publication.recover()

    def _take_hints(self, now: float) -> None:
        paths = self._hints.take() if self._hints is not None else None
        soon = max(now, self._last_scan + HINT_SECONDS)
        for path in paths or ():
            if self._settler.touch(path, soon):
                continue
            if self._scanner.has(path):
                self._scanner.missed(path)
            self._next_scan = min(self._next_scan, soon)

    def _scan(self, now: float) -> None:
        listening = self._hints is not None and self._hints.alive
        pause = self._pause(listening)
        deep = not self.scans or now - self._last_deep >= (DEEP_SECONDS if listening else pause)
        scan = self._scanner.scan(deep=deep)
        self._last_scan, self._next_scan = now, now + pause
        self._last_deep = now if deep else self._last_deep
        if scan.state == "missing" or self._ledger.moved:
            gone = f"{self.folder} is gone" if scan.state == "missing" else f"{self._ledger.path} was removed"
            self._report.problem("", f"{gone}; waiting for it to come back", "gone")
            self._suspend(now)
        elif scan.state == "unreachable":
            text = f"{self.folder} cannot be read now: {scan.reason}; trying again"
            self._report.once("unreachable", text)
        else:
            self._report.over("unreachable")
            self._take(scan, now)
            self._hear_requests()

    def _hear_requests(self) -> None:
        """Take what people asked for into the ledger."""
        for path, silence in requests.waiting(self.out):
            if silence is None:
                self._report.problem("", f"{path} is no request; it was removed", f"request {path.name}")
            else:
                self._ledger.append("silence", silence)
                self.publication.silence(silence)
            with contextlib.suppress(OSError):
                path.unlink()

    def _pause(self, listening: bool) -> float:
        if self._options.poll_seconds is not None:
            return max(self._options.poll_seconds, 0.05)
        unsettled = bool(self._settler.waiting)
        if self._network:
            return SCAN_SECONDS if unsettled else NETWORK_SECONDS
        return UNSETTLED_SECONDS if unsettled and not listening else SCAN_SECONDS

    def _take(self, scan: Scan, now: float) -> None:
        if scan.replaced:
            self._report.notice(f"{self.folder} is another folder than before; looking again")
            if self._hints is not None:  # it listens to the old one
                self._deafen()
                self._listen()
        if scan.truncated:
            self._report.once("entries", f"{self.folder} holds too many files; the first are looked at")
        first = self.scans == 0
        self.scans += 1
        for path in scan.vanished:
            self._vanished(path, now)
        for path, mark in scan.changed.items():
            self._changed(path, mark, now, first)
        for path, mark in self._aside.waiting() if first else ():
            if not self._scanner.has(path) and self._versions.find(path, mark) is None:
                self._ready(path, mark, 0)

    def _changed(self, path: str, mark: Stamp, now: float, first: bool) -> None:
        if self.queue.remove(path):
            self._passed[path] = self._passed.get(path, 0) + 1
        seq = self._versions.find(path, mark)
        if seq is not None:
            self._same(path, mark, seq)
            return
        if not first:
            self.queue.appeared(path, now)
        option = self._filter.refuses(path, mark)
        if option:
            self._report.once(option, f"{path} is passed over because of {option}; later ones silently")
        else:
            self._settler.add(path, mark, now)

    def _vanished(self, path: str, now: float) -> None:
        self._settler.discard(path)
        self._filter.forget(path)
        self.queue.vanished(path, now, rolling=self._parts.is_rolling(path))
        if not self._options.once:  # only then is it asked in the end
            self.failed.discard(path)
        for known in (self._torn, self._passed):
            known.pop(path, None)
        if path in self.queue and not self._aside.has(path):
            self._lose(path)

    # Settled files.

    def _settled(self, settled: Settled) -> None:
        if settled.outcome == "gone":
            self._lose(settled.path)
        elif settled.stamp is not None and settled.outcome == "abandoned":
            reason = f"{settled.path} is not whole and does not grow: {settled.reason}"
            candidate = self._candidate(settled.path, settled.stamp, None, settled.versions)
            self._fail(candidate, reason, "IncompleteCheckpoint")
        elif settled.stamp is not None:
            self._ready(settled.path, settled.stamp, settled.versions)

    def _ready(self, path: str, mark: Stamp, versions: int) -> None:
        key = content_key(self._aside.resolve(path))
        seq = self._versions.find(path, mark)
        if seq is None:
            seq = self._versions.find_key(key)
        if seq is not None:
            self._same(path, mark, seq, key)
            return
        self.queue.add(self._candidate(path, mark, key, versions))
        if self._options.copy_aside:
            waiting = self.queue.in_order(self._clock.monotonic())
            self._aside.protect((candidate.path, candidate.stamp) for candidate in waiting)

    def _candidate(self, path: str, mark: Stamp, key: str | None, versions: int) -> Candidate:
        done = count_done(self._parts.from_name(path))
        return Candidate(
            path=path,
            stamp=mark,
            content_key=key,
            done=-math.inf if done is None else done,
            rolling=self._parts.is_rolling(path),
            appeared=self.queue.first_seen(path),
            versions=versions + self._passed.pop(path, 0),
        )

    def _same(self, path: str, mark: Stamp, seq: int, key: str | None = None) -> None:
        """A file whose content was dealt with already, under this or another name."""
        self.history.set_left(seq, True)
        known = self.history[self.history.row(seq)]
        if known.status != "scored":
            self.failed.add(path)
        named = path == known.source.path or path in known.source.aliases
        if named and self._versions.find(path, mark) == seq:
            return
        data = {"path": path, "key": mark.to_list(), "content_key": key, "of": seq}
        self._ledger.append("alias", {**data, "request": self._options.request})
        self.history.alias(seq, path)
        self._versions.add(path, mark, seq, key)

    # Choosing.

    def next(self) -> Candidate | None:
        """Take the checkpoint to evaluate next out of the queue."""
        if not self.open or self._ledger.full:
            return None
        return self.queue.take(self._clock.monotonic())

    def put_back(self, candidate: Candidate) -> None:
        """It was not evaluated; unless there is a newer version, it waits again."""
        if self.open and candidate.path not in self._settler.waiting and candidate.path not in self.queue:
            self.queue.add(candidate)

    def job(self, candidate: Candidate, device: str) -> dict[str, Any] | None:
        """What a worker is told; None when the file is gone."""
        path = self._aside.resolve(candidate.path)
        try:
            mark = candidate.stamp if path == self.folder / candidate.path else stamp(path)
        except OSError:
            self._lose(candidate.path)
            return None
        asked = self._asked(device)
        return {"path": str(path), "name": candidate.path, "stamp": mark.to_list(), **asked}

    def preparation(self, device: str) -> dict[str, Any]:
        """What a worker is told while a file lies still: what will be asked, and the last image size."""
        sizes = (row.settings.crop for row in reversed(self.history) if row.settings is not None)
        return {"prepare": self._asked(device), "crop": next(sizes, None)}

    def _asked(self, device: str) -> dict[str, Any]:
        maps = str(self.out) if self._options.maps else None
        place = Placement(cache=str(self.out / "images"), device=device, maps=maps)
        return {"config": self._options.config.to_json(), "place": place.to_json()}

    @property
    def idle(self) -> bool:
        """Whether the folder was looked at and nothing waits."""
        return self.scans > 0 and not self.queue and not self._settler.waiting

    @property
    def settling(self) -> bool:
        """Whether files are being written or lie still."""
        return bool(self._settler.waiting)

    @property
    def foresees(self) -> bool:
        """Whether a file will be ready within seconds, if it stays as it is."""
        return self.open and self._settler.foresees(self._clock.monotonic())

    # Results.

    def evaluated(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """A worker measured a checkpoint, or says why it cannot be."""
        if not self.open:
            return
        evaluation = self._named(candidate, evaluation)
        if evaluation.status == "failed" and evaluation.error in TORN and self._try_again(candidate):
            return
        self._torn.pop(candidate.path, None)
        self._record_once(candidate, evaluation)

    def _record_once(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Record an evaluation, or another name of one whose encoder is the same."""
        for seq in self._versions.find_content(evaluation):
            if _same_progress(self.history[self.history.row(seq)], evaluation):
                self._same(candidate.path, candidate.stamp, seq, candidate.content_key)
                self._aside.release(candidate.path)
                return
        self._record(candidate, evaluation)

    def changed(self, candidate: Candidate) -> None:
        """The file was rewritten before it could be read: wait for the new version."""
        self._passed[candidate.path] = self._passed.get(candidate.path, 0) + 1
        self._scanner.missed(candidate.path)
        self._next_scan = self._clock.monotonic()

    def gone(self, candidate: Candidate) -> None:
        """The file was removed before it could be read."""
        if self.open:
            self._scanner.missed(candidate.path)
            self._lose(candidate.path)

    def crashed(self, candidate: Candidate, reason: str) -> None:
        """The worker died on it: once more, then never again for this content."""
        if not self.open:
            return
        key = candidate.stamp.to_list()
        data = {"path": candidate.path, "key": key, "content_key": candidate.content_key, "reason": reason}
        self._ledger.append("crash", data)
        if self._versions.crashed(candidate.stamp, candidate.content_key) < CRASHES:
            self._report.problem(candidate.path, f"{reason}; trying once more", "crash")
            self.put_back(candidate)
            return
        text = f"{candidate.path}: {reason}, {CRASHES} times; not tried again until the file changes"
        self._fail(candidate, text, WORKER_CRASH)

    def _try_again(self, candidate: Candidate) -> bool:
        """After a read that failed as one of a changing file does: whether the file is looked at again."""
        path = self._aside.resolve(candidate.path)
        try:
            mark = stamp(path)
        except FileNotFoundError:
            self._lose(candidate.path)
            return True
        except OSError:
            mark = candidate.stamp
        if path == self.folder / candidate.path and not mark.same_version(candidate.stamp):
            self.changed(candidate)
            return True
        tries = self._torn[candidate.path] = self._torn.get(candidate.path, 0) + 1
        if tries >= (2 if self._options.once else TORN_TRIES):
            return False
        hold = self._settler.settle_seconds * 4 ** (tries - 1)
        self._settler.add(candidate.path, candidate.stamp, self._clock.monotonic(), hold=hold)
        return True

    def _fail(self, candidate: Candidate, reason: str, error: str) -> None:
        mark = candidate.stamp
        source = Source(path=candidate.path, size=mark.size, mtime=mark.mtime_ns / 1e9)
        now = self._clock.time()
        failed = Evaluation(status="failed", source=source, reason=reason, error=error, wall_time=now)
        self._record(candidate, failed)

    def _named(self, candidate: Candidate, evaluation: Evaluation) -> Evaluation:
        """With paths relative to the run, and times where the reader had none."""
        source = evaluation.source
        mtime = source.mtime if math.isfinite(source.mtime) else candidate.stamp.mtime_ns / 1e9
        return dataclasses.replace(
            evaluation,
            source=dataclasses.replace(source, path=candidate.path, mtime=mtime),
            reason=evaluation.reason.replace(f"{self.folder}/", ""),
            wall_time=evaluation.wall_time or self._clock.time(),
        )

    def _record(self, candidate: Candidate, evaluation: Evaluation) -> None:
        evaluation = dataclasses.replace(evaluation, seq=self.publication.sequence())
        extra: dict[str, Any] = {
            "key": candidate.stamp.to_list(),
            "content_key": candidate.content_key,
            "request": self._options.request,
            "version": dse_monitor.__version__,
        }
        if candidate.versions:
            extra["versions_passed_over"] = candidate.versions
        on_disk = self._ledger.append_evaluation(evaluation, extra)
        self.history.append(evaluation)
        self._versions.add(candidate.path, candidate.stamp, evaluation.seq, candidate.content_key)
        self._versions.add_content(evaluation)
        (self.failed.discard if evaluation.status == "scored" else self.failed.add)(candidate.path)
        self._aside.release(candidate.path)
        for twin in self.queue.twins(candidate):
            self.queue.remove(twin.path)
            self._same(twin.path, twin.stamp, evaluation.seq, twin.content_key)
        self.publication.add(evaluation, on_disk=on_disk, more=bool(self.queue))

    def _lose(self, path: str) -> None:
        self.queue.remove(path)
        self._ledger.append("lost", {"path": path})
        text = f"{path} was removed before it could be read; --copy-aside protects files"
        self._report.problem(path, text, "lost")

    def locate(self, evaluation: Evaluation) -> str | None:
        """Path of a file that still holds the version evaluated; a name that stays is preferred."""
        paths = (evaluation.source.path, *evaluation.source.aliases)
        for path in sorted(paths, key=self._parts.is_rolling):
            with contextlib.suppress(OSError):
                if self._versions.find(path, stamp(self.folder / path)) == evaluation.seq:
                    return path
        # The scans say when a file of a name that is not there comes back: see `_same`.
        if self.scans and not any(map(self._scanner.has, paths)) and not self.publication.keeps(evaluation):
            self.history.set_left(evaluation.seq, False)
        return None

    # Saying.

    def waiting_for(self) -> str:
        """The file that is being written now, in words; empty if there is none."""
        if not self._settler.waiting:
            return ""
        file = max(self._settler.waiting.values(), key=lambda file: file.since)
        growing = ", still growing" if file.grew else ""
        return f"waiting: {file.path} {file.reason} ({_size(file.stamp.size)}{growing})"

    def reached(self, epoch: float | None, step: int | None) -> bool:
        """Whether a checkpoint with so many epochs or steps done was dealt with, and nothing waits."""
        return self.idle and any(
            (epoch is not None and self._count(evaluation, "epoch") >= epoch)
            or (step is not None and self._count(evaluation, "step") >= step)
            for evaluation in self.history
        )

    def _count(self, evaluation: Evaluation, axis: str) -> float:
        source, facts = evaluation.source, self._parts.from_name(evaluation.source.path)
        inside, named = (
            (source.epoch, facts.epoch_done) if axis == "epoch" else (source.step, facts.step_done)
        )
        found = inside if inside is not None else named
        return -math.inf if found is None else float(found)

    def remind(self) -> None:
        """Let the alerts look at the clock."""
        if self.open:
            self.publication.remind(more=bool(self.queue))

    def beat(
        self,
        state: str,
        current: str = "",
        progress: tuple[str, int, int] | None = None,
        message: str = "",
    ) -> None:
        """Write what is being done now; a full disk is noticed elsewhere."""
        if not self.open:
            return
        message = message or self.waiting_for()
        next_scan = max(0.0, self._next_scan - self._clock.monotonic())
        beat = self._heartbeat(
            state, current=current, progress=progress, message=message, next_scan=next_scan
        )
        with contextlib.suppress(OSError):
            beat.write(self.out)
        self.publication.beat(len(self.queue), current, message)

    def _heartbeat(self, state: str, **facts: Any) -> heartbeat.Heartbeat:
        history = self.history
        return heartbeat.new(
            dse_monitor.__version__,
            self._clock.time(),
            state=state,
            since=self._since,
            scored=history.count("scored"),
            failed=history.count("failed") + history.count("invalid"),
            queue=len(self.queue),
            settling=len(self._settler.waiting),
            skipped=len(self._filter.refused),
            present=self._scanner.count,
            last_error=self._report.last_problem,
            **facts,
        )


def _is_final(failed: Evaluation, version: str | None) -> bool:
    """Whether a failure follows from the file alone, so that it is not worth another try after a restart.

    Another version of this program may read more; and an error nobody foresaw may be the machine's fault.
    """
    foreseen = failed.error == WORKER_CRASH or hasattr(errors, failed.error)
    return foreseen and version == dse_monitor.__version__


def _same_progress(known: Evaluation, new: Evaluation) -> bool:
    """Whether the same encoder also claims the same place; one that claims none adds nothing."""
    place = (new.source.epoch, new.source.step)
    return place in ((known.source.epoch, known.source.step), (None, None))


def _size(size: int) -> str:
    for limit, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if size >= limit:
            return f"{size / limit:.1f} {unit}"
    return f"{size} B"
