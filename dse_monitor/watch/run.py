"""One watched run: its folder, its ledger, and what follows from an evaluation.

Order of every result: ledger (on disk) first, then event data, then best.json, then alerts. A watcher that is
killed in between publishes the rest when it starts again, because all of it is derived from the ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import dse_monitor
from dse_monitor.checkpoints import archive, names
from dse_monitor.checkpoints.names import NameFacts
from dse_monitor.errors import OutputError
from dse_monitor.publish import best
from dse_monitor.record import Alert, Evaluation, Source, evaluation_from_json
from dse_monitor.series import Series
from dse_monitor.watch import heartbeat, mounts
from dse_monitor.watch.aside import Aside
from dse_monitor.watch.console import Console, Header, Notice, Problem, Row
from dse_monitor.watch.hints import Hints
from dse_monitor.watch.history import History
from dse_monitor.watch.identity import Stamp, content_key, stamp
from dse_monitor.watch.ledger import EVALUATIONS, Fact, Ledger, next_sequence
from dse_monitor.watch.locking import RunLock
from dse_monitor.watch.options import WatchOptions, since_rule
from dse_monitor.watch.scanner import Scan, Scanner
from dse_monitor.watch.settle import Completeness, Settled, Settler
from dse_monitor.watch.versions import Versions

SCAN_SECONDS = 15.0  # between looks at a local folder; ours
UNSETTLED_SECONDS = 5.0  # the same while a file is being written and no events come; ours
NETWORK_SECONDS = 60.0  # the same on a network disk when nothing happens; ours
DEEP_SECONDS = 120.0  # between scans that look at every known file again, where events come; ours
HINT_SECONDS = 0.5  # between scans that an event asked for; ours
RECOVER_SECONDS = 10.0  # between attempts to write what could not be written; ours
SLOW_SECONDS = 60.0  # s without growth after which an incomplete file is worth a line; ours
TORN_TRIES = 3  # times a file is read whose bytes contradict themselves, before it is given up; ours
CRASHES = 2  # times a checkpoint may kill the worker; ours
TORN = ("IncompleteCheckpoint", "CorruptCheckpoint")  # errors that a file still being rewritten shows as well


class Clock(Protocol):
    """Time as the watcher sees it."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def time(self) -> float:
        """Seconds since 1970."""
        ...


@dataclass(frozen=True)
class Parts:
    """What a run is watched with; tests put their own in.

    Attributes:
        is_candidate: judges a path below the run.
        is_rolling: judges a name that is written over and over.
        from_name: what a path says about progress.
        check_complete: whether a file is whole.
        writer: makes the writer of event data for a folder.
        state: makes the published state of a run.
        book: makes the alerts of a run from its name and the rules.
        outbox: makes what delivers alerts, from sinks and a function that records; None for no sinks.
        hints: makes a source of change events; may raise OSError.
    """

    is_candidate: Callable[[str], bool]
    is_rolling: Callable[[str], bool]
    from_name: Callable[[str], NameFacts]
    check_complete: Callable[[Path], Completeness]
    writer: Callable[[Path], Any]
    state: Callable[..., dict[str, Any]]
    book: Callable[[str, Any], Any]
    outbox: Callable[..., Any] | None = None
    hints: Callable[[Path, Callable[[], None], Path | None], Hints] | None = Hints

    @classmethod
    def real(cls) -> Parts:
        """The parts of this project."""
        from dse_monitor.alerts.outbox import Outbox
        from dse_monitor.alerts.state import AlertBook
        from dse_monitor.publish.events import EventWriter
        from dse_monitor.publish.state import run_state

        return cls(
            is_candidate=names.is_candidate,
            is_rolling=names.is_rolling,
            from_name=names.from_name,
            check_complete=archive.check_complete,
            writer=EventWriter,
            state=run_state,
            book=AlertBook,
            outbox=Outbox,
        )


@dataclass(frozen=True)
class Candidate:
    """A whole, still file that waits to be evaluated.

    Attributes:
        path: relative to the run.
        stamp: the version meant.
        content_key: see identity.content_key.
        facts: what its name says.
        rolling: whether its name is written over and over.
        appeared: when it was first seen, monotonic seconds; 0 for files that were there before the watcher.
        versions: versions of it that were passed over since the last evaluation.
    """

    path: str
    stamp: Stamp
    content_key: str | None
    facts: NameFacts
    rolling: bool
    appeared: float = 0.0
    versions: int = 0

    @property
    def done(self) -> float:
        """Count done by its name, for sorting; below all others when there is none."""
        facts = self.facts
        if facts.epoch_done is not None:
            return facts.epoch_done
        return float(facts.step_done) if facts.step_done is not None else -math.inf


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
        self._options, self._console, self._parts, self._clock = options, console, parts, clock
        self._wake, self._cancelled = wake, cancelled
        self.open = False
        self.served = -math.inf
        self.failed_now: set[str] = set()
        self.last_error = ""
        self._since = clock.time()
        self._said: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        """Forget everything that a ledger or a folder tells anew."""
        self.history = History()
        self.alerts: list[Alert] = []
        self.pending: dict[str, Candidate] = {}
        self.skipped: dict[str, str] = {}
        self.state = "waiting"
        self.scans = 0
        self._versions = Versions()
        self._scanner = Scanner(self.folder, self._parts.is_candidate, self._parts.is_rolling, skip=self.out)
        self._settler: Settler | None = None
        self._hints: Hints | None = None
        self._torn: dict[str, int] = {}
        self._appeared: OrderedDict[str, float] = OrderedDict()
        self._lifetimes: deque[float] = deque(maxlen=8)
        self._passed: dict[str, int] = {}
        self._accepted: set[float] = set()
        self._next_scan = self._last_scan = self._last_deep = -math.inf
        self._next_recovery = math.inf
        self._behind = False
        self._trouble = ""
        self._trouble_episode = 0
        self._last_alert_seq = 0

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
            self._say_once("missing", f"{self.folder} does not exist yet; waiting for it")
            self.state = "missing"
            return False
        self._clear()
        self._lock = RunLock(self.out)
        dead = self._lock.take(heartbeat=self.out / heartbeat.NAME)
        try:
            self._ledger = Ledger.open(self.out, self._clock.time)
            self._replay(dead is not None)
        except BaseException:
            self._lock.release()
            raise
        self.open = True
        self._said.discard("missing")
        self._listen()
        return True

    def _replay(self, recovered: bool) -> None:
        """Learn from the ledger what was done, and publish what a killed watcher did not."""
        silences, deliveries, request = [], [], ""
        for fact in self._ledger.facts():
            if fact.kind in EVALUATIONS:
                self._learn(fact)
            elif fact.kind == "alias":
                self._learn_alias(fact)
            elif fact.kind == "crash":
                self._versions.crashed(Stamp.from_list(fact.data["key"]), fact.data.get("content_key"))
            elif fact.kind == "alert":
                self._learn_alert(fact)
            elif fact.kind == "silence":
                silences.append(fact.data)
            elif fact.kind == "delivery":
                deliveries.append(fact.data["delivery"])
            elif fact.kind == "watch":
                request = fact.data.get("request", "")
        for warning in self._ledger.warnings:
            self._problem("", warning, "ledger")
        self._header(request)
        me = heartbeat.new(dse_monitor.__version__, self._clock.time())
        self._ledger.append(
            "watch",
            {
                "host": me.host,
                "pid": me.pid,
                "version": me.version,
                "request": self._options.request,
                "probe": self._options.probe,
                "recovered": recovered,
            },
        )
        self._keeper = best.Keeper(
            self.folder, self.out, self._options.keep_best, self._parts.is_rolling, cancelled=self._cancelled
        )
        self._aside = Aside(self.folder, self.out, self._options.copy_aside)
        self._writer = self._parts.writer(self.out)
        self._book = self._parts.book(self.name, self._options.rules)
        self._book.restore([alert for alert in self.alerts if alert.kind != "test"], silences)
        self._outbox = self._make_outbox(deliveries)
        with self._writing():
            self._writer.catch_up(self._full_evaluations(), self.alerts)
        told = self._book.advance(list(self.history), now=self._clock.time())
        if len(self.history) or told:
            self._publish_rest(told)

    def _learn(self, fact: Fact) -> None:
        evaluation = evaluation_from_json(fact.data["evaluation"])
        self.history.append(evaluation)
        self._versions.add_content(evaluation)
        version = fact.data.get("version")
        measured = evaluation.status != "failed" or version == dse_monitor.__version__
        if fact.data.get("request") == self._options.request and measured and fact.data.get("key"):
            path, key = evaluation.source.path, Stamp.from_list(fact.data["key"])
            self._versions.add(path, key, evaluation.seq, fact.data.get("content_key"))

    def _learn_alias(self, fact: Fact) -> None:
        with contextlib.suppress(KeyError):  # of a line that could not be read
            self.history.alias(fact.data["of"], fact.data["path"])
            if fact.data.get("request") == self._options.request:
                self._versions.add(fact.data["path"], Stamp.from_list(fact.data["key"]), fact.data["of"])

    def _learn_alert(self, fact: Fact) -> None:
        from dse_monitor.record import alert_from_json

        alert = alert_from_json(fact.data["alert"])
        self.alerts.append(alert)
        self._last_alert_seq = max(self._last_alert_seq, alert.seq)
        if "/disk/" in alert.key:
            self._trouble_episode += alert.status == "firing"
            self._trouble = "before" if alert.status == "firing" else ""

    def _make_outbox(self, deliveries: Sequence[dict[str, Any]]) -> Any:
        if self._parts.outbox is None or not self._options.sinks:
            return None
        outbox = self._parts.outbox(
            self._options.sinks,
            lambda fact: self._ledger.append("delivery", {"delivery": fact}),
            self._clock.time,
        )
        outbox.restore(self.alerts, deliveries)
        return outbox

    def _full_evaluations(self) -> Iterator[Evaluation]:
        """Every evaluation on disk, with stage times and companions."""
        for fact in self._ledger.facts():
            if fact.kind in EVALUATIONS:
                yield evaluation_from_json(fact.data["evaluation"])

    def _listen(self) -> None:
        kind = mounts.filesystem(self.folder)
        self._network = mounts.is_network(kind)
        options = self._options
        settle = options.settle_seconds
        self._settler = Settler(
            self.folder,
            mounts.settle_seconds(kind) if settle is None else settle,
            self._parts.check_complete,
            impatient=options.once,
        )
        if options.poll_seconds is not None or options.once or self._parts.hints is None:
            return
        if self._network:
            self._say_once("network", f"{kind} sends no change events; looking every {NETWORK_SECONDS:.0f} s")
            return
        try:
            self._hints = self._parts.hints(self.folder, self._wake, self.out)
            self._hints.start()
        except OSError as error:
            self._hints = None
            reason = error.strerror or str(error)
            self._say_once("hints", f"no change events ({reason}); looking every {SCAN_SECONDS:.0f} s")

    def close(self, timeout: float = 2.0) -> None:
        """Write the last word and give everything back."""
        if not self.open:
            return
        self.open = False
        if self._hints is not None:
            self._hints.stop()
            self._hints = None
        if self._outbox is not None:
            self._outbox.close(timeout)
        self._ledger.retry()
        with self._writing():
            self._publish_state(alive=False)
        with contextlib.suppress(OutputError):
            self._writer.close()
        with contextlib.suppress(OSError):
            self._beat("ended").write(self.out)
        self._ledger.close()
        self._lock.release()

    def _suspend(self) -> None:
        """The folder is gone: hold nothing of it, so that it can come back as it likes."""
        self.open = False
        if self._hints is not None:
            self._hints.stop()
        if self._outbox is not None:
            self._outbox.close(0.0)
        with contextlib.suppress(OutputError):
            self._writer.close()
        self._ledger.close()
        self._lock.release()
        self._clear()

    # Looking.

    def due(self) -> float:
        """When this run wants to be looked after again, monotonic seconds."""
        if not self.open:
            return self._next_scan
        assert self._settler is not None
        settle = self._settler.due()
        return min(self._next_scan, math.inf if settle is None else settle, self._next_recovery)

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
        assert self._settler is not None
        for settled in self._settler.step(now):
            self._settled(settled)
        self._say_slow(now)
        if now >= self._next_recovery:
            self._recover(now)

    def remind(self) -> None:
        """Let the alerts look at the clock."""
        if self.open:
            self._tell(self._book.advance([], now=self._clock.time()))

    def _take_hints(self, now: float) -> None:
        paths = self._hints.take() if self._hints is not None else None
        if not paths or self._settler is None:
            return
        for path in paths:
            if self._settler.touch(path, max(now, self._last_scan + HINT_SECONDS)):
                continue
            if self._scanner.has(path):
                self._scanner.missed(path)
            self._next_scan = min(self._next_scan, max(now, self._last_scan + HINT_SECONDS))

    def _scan(self, now: float) -> None:
        listening = self._hints is not None and self._hints.alive
        pause = self._pause(listening)
        deep = not self.scans or now - self._last_deep >= (DEEP_SECONDS if listening else pause)
        scan = self._scanner.scan(deep=deep)
        self._last_scan, self._next_scan = now, now + pause
        if deep:
            self._last_deep = now
        if scan.state == "missing" or self._ledger.moved:
            gone = f"{self.folder} is gone" if scan.state == "missing" else f"{self._ledger.path} was removed"
            self._problem("", f"{gone}; waiting for it to come back", "gone")
            self._suspend()
            self.state, self._next_scan = "missing", now + UNSETTLED_SECONDS
            return
        if scan.state == "unreachable":
            self._say_once("unreachable", f"{self.folder} cannot be read now: {scan.reason}; trying again")
            return
        self._said.discard("unreachable")
        self._take(scan, now)

    def _pause(self, listening: bool) -> float:
        if self._options.poll_seconds is not None:
            return max(self._options.poll_seconds, 0.05)
        unsettled = self._settler is not None and bool(self._settler.waiting)
        if self._network:
            return SCAN_SECONDS if unsettled else NETWORK_SECONDS
        return UNSETTLED_SECONDS if unsettled and not listening else SCAN_SECONDS

    def _take(self, scan: Scan, now: float) -> None:
        assert self._settler is not None
        if scan.replaced:
            self._notice(f"{self.folder} was replaced by another folder of the same name; looking again")
            if self._hints is not None:  # it listens to the old one
                self._hints.stop()
                self._hints = None
                self._listen()
        if scan.truncated:
            self._say_once("entries", f"{self.folder} holds too many files; only the first are looked at")
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
        assert self._settler is not None
        if path in self.pending:
            self._passed[path] = self._passed.get(path, 0) + 1
            del self.pending[path]
        seq = self._versions.find(path, mark)
        if seq is not None:
            self._same(path, mark, seq)
            return
        if not first and path not in self._appeared:
            self._appeared[path] = now
            if len(self._appeared) > 1000:
                self._appeared.popitem(last=False)
        if self._passes(path, mark):
            self._settler.add(path, mark, now)

    def _vanished(self, path: str, now: float) -> None:
        assert self._settler is not None
        self._settler.discard(path)
        appeared = self._appeared.pop(path, None)
        if appeared is not None and not self._parts.is_rolling(path):
            self._lifetimes.append(now - appeared)
        for known in (self.skipped, self._torn, self._passed):
            known.pop(path, None)
        if path in self.pending and not self._aside.has(path):
            self._lose(path)

    def _passes(self, path: str, mark: Stamp) -> bool:
        """Whether the options let a checkpoint through; why not is said once per option and counted."""
        option = self._refused(path, mark)
        if not option:
            self.skipped.pop(path, None)
            return True
        self.skipped[path] = option
        self._say_once(f"skip {option}", f"{path} is passed over because of {option}; later ones silently")
        return False

    def _refused(self, path: str, mark: Stamp) -> str:
        options, facts = self._options, self._parts.from_name(path)
        done = facts.epoch_done if facts.epoch_done is not None else facts.step_done
        if options.every is not None and done is not None and done % options.every:
            return f"--every {options.every}"
        mtime = mark.mtime_ns / 1e9
        if options.since is not None and not since_rule(options.since, self._since)(facts, mtime):
            return f"--since {options.since}"
        interval = options.min_interval
        if interval is not None and any(0 < abs(mtime - other) < interval for other in self._accepted):
            return f"--min-interval {interval:g}"
        if interval is not None:
            self._accepted.add(mtime)
        return ""

    # Settled files.

    def _settled(self, settled: Settled) -> None:
        if settled.outcome == "gone":
            self._lose(settled.path)
        elif settled.outcome == "abandoned":
            assert settled.stamp is not None
            reason = f"{settled.path} is not whole and has not grown for long: {settled.reason}"
            candidate = self._candidate(settled.path, settled.stamp, None, 0)
            self._fail(candidate, reason, "IncompleteCheckpoint")
        elif settled.stamp is not None:
            self._ready(settled.path, settled.stamp, settled.versions)

    def _ready(self, path: str, mark: Stamp, versions: int) -> None:
        key = content_key(self._aside.resolve(self.folder, path))
        seq = self._versions.find(path, mark)
        if seq is None:
            seq = self._versions.find_key(key)
        if seq is not None:
            self._same(path, mark, seq, key)
            return
        self.pending[path] = self._candidate(path, mark, key, versions)
        self._protect()

    def _candidate(self, path: str, mark: Stamp, key: str | None, versions: int) -> Candidate:
        return Candidate(
            path=path,
            stamp=mark,
            content_key=key,
            facts=self._parts.from_name(path),
            rolling=self._parts.is_rolling(path),
            appeared=self._appeared.get(path, 0.0),
            versions=versions + self._passed.pop(path, 0),
        )

    def _same(self, path: str, mark: Stamp, seq: int, key: str | None = None) -> None:
        """A file whose content was dealt with already, under this or another name."""
        known = self.history[self.history.row(seq)]
        if known.status == "failed":
            self.failed_now.add(path)
        exact = path == known.source.path or path in known.source.aliases
        if exact and self._versions.find(path, mark) == seq:
            return
        data = {"path": path, "key": mark.to_list(), "of": seq, "request": self._options.request}
        self._ledger.append("alias", data)
        self.history.alias(seq, path)
        self._versions.add(path, mark, seq, key)

    def _protect(self) -> None:
        waiting = sorted(self.pending.values(), key=self._urgency, reverse=True)
        self._aside.protect([(candidate.path, candidate.stamp) for candidate in waiting])

    # Choosing.

    def _urgency(self, candidate: Candidate) -> tuple[Any, ...]:
        """Sorts what is evaluated first to the front, greatest first."""
        if self._options.once:
            return (not candidate.rolling, -candidate.done, -candidate.stamp.mtime_ns, candidate.path)
        return (
            self._about_to_rotate(candidate),
            candidate.appeared,
            candidate.done,
            candidate.stamp.mtime_ns,
            candidate.path,
        )

    def _about_to_rotate(self, candidate: Candidate) -> bool:
        """Rolling files, and files that have lived for more than half as long as others did before them."""
        if candidate.rolling:
            return True
        if not self._lifetimes or not candidate.appeared:
            return False
        return self._clock.monotonic() - candidate.appeared > min(self._lifetimes) / 2

    def next(self) -> Candidate | None:
        """Take the checkpoint to evaluate next out of the queue."""
        if not self.pending or not self.open or self._ledger.full:
            return None
        chosen = max(self.pending.values(), key=self._urgency)
        twins = [c for c in self.pending.values() if _same_content(c, chosen)]
        chosen = min(twins, key=lambda c: (c.rolling, c.path))  # recorded under the name that stays
        del self.pending[chosen.path]
        return chosen

    def put_back(self, candidate: Candidate) -> None:
        """It was not evaluated; unless there is a newer version it waits again."""
        assert self._settler is not None
        if self.open and candidate.path not in self._settler.waiting:
            self.pending.setdefault(candidate.path, candidate)

    def job(self, candidate: Candidate, device: str) -> dict[str, Any] | None:
        """What a worker is told; None when the file is gone."""
        path = self._aside.resolve(self.folder, candidate.path)
        try:
            mark = candidate.stamp if path == self.folder / candidate.path else stamp(path)
        except OSError:
            self._lose(candidate.path)
            return None
        probe = {**self._options.probe, "cache": str(self.out / "images"), "device": device}
        if self._options.maps:
            probe["maps"] = str(self.out)
        return {"path": str(path), "name": candidate.path, "stamp": mark.to_list(), "probe": probe}

    @property
    def idle(self) -> bool:
        """Whether the folder was looked at and nothing waits."""
        return self.scans > 0 and not self.pending and self._settler is not None and not self._settler.waiting

    @property
    def settling(self) -> int:
        """Files that are being written or lie still."""
        return len(self._settler.waiting) if self._settler is not None else 0

    # Results.

    def evaluated(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """A worker measured a checkpoint, or says why it cannot be."""
        if not self.open:
            return
        evaluation = self._named(candidate, evaluation)
        if evaluation.status == "failed" and evaluation.error in TORN and self._try_again(candidate):
            return
        self._torn.pop(candidate.path, None)
        for seq in self._versions.find_content(evaluation):
            known = self.history[self.history.row(seq)]
            if _same_progress(known, evaluation):
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
            self._problem(candidate.path, f"{candidate.path}: {reason}; trying once more", "crash")
            self.put_back(candidate)
            return
        text = f"{candidate.path}: {reason}, {CRASHES} times; not tried again until the file changes"
        self._fail(candidate, text, "WorkerCrash")

    def _try_again(self, candidate: Candidate) -> bool:
        """After a read that failed as one of a changing file does: whether the file is looked at again."""
        assert self._settler is not None
        path = self._aside.resolve(self.folder, candidate.path)
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
        source = Source(path=candidate.path, size=candidate.stamp.size, mtime=candidate.stamp.mtime_ns / 1e9)
        now = self._clock.time()
        self._record(
            candidate,
            Evaluation(status="failed", source=source, reason=reason, error=error, wall_time=now),
        )

    def _named(self, candidate: Candidate, evaluation: Evaluation) -> Evaluation:
        mtime = evaluation.source.mtime
        if not math.isfinite(mtime):
            mtime = candidate.stamp.mtime_ns / 1e9
        source = dataclasses.replace(evaluation.source, path=candidate.path, mtime=mtime)
        return dataclasses.replace(
            evaluation, source=source, wall_time=evaluation.wall_time or self._clock.time()
        )

    def _record(self, candidate: Candidate, evaluation: Evaluation) -> None:
        seq = self._sequence()
        evaluation = dataclasses.replace(evaluation, seq=seq)
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
        self._versions.add(candidate.path, candidate.stamp, seq, candidate.content_key)
        self._versions.add_content(evaluation)
        self._aside.release(candidate.path)
        self._publish(evaluation, on_disk)
        for twin in [c for c in self.pending.values() if _same_content(c, candidate)]:
            del self.pending[twin.path]
            self._same(twin.path, twin.stamp, seq, twin.content_key)

    def _sequence(self) -> int:
        last = max(self.history.last_seq, self._last_alert_seq)
        return next_sequence(last, self._clock.time())

    def _lose(self, path: str) -> None:
        self.pending.pop(path, None)
        self._ledger.append("lost", {"path": path})
        self._problem(
            path, f"{path} was removed before it could be read; --copy-aside protects files", "lost"
        )

    # Publishing.

    def _publish(self, evaluation: Evaluation, on_disk: bool) -> None:
        if on_disk:
            with self._writing():
                self._writer.add_evaluation(evaluation)
                self._writer.flush()
        else:
            self._blocked(self._ledger.error)
        line = Series.from_evaluations(self.history)
        self._publish_best(line)
        told = self._book.advance([self.history[-1]], now=self._clock.time())
        self._say(evaluation, line, told)
        self._tell(told)

    def _publish_rest(self, told: Sequence[Alert]) -> None:
        """What may be missing after a restart."""
        self._publish_best(Series.from_evaluations(self.history))
        self._tell(told, loud=True)

    def _publish_best(self, line: Series) -> None:
        try:
            self._keeper.update(line, self.locate)
            if self._keeper.problem:
                self._say_once(self._keeper.problem, self._keeper.problem)
            best.publish(
                self.out, self.folder, best.describe(self.folder, line, self.locate, self._keeper.path)
            )
        except OSError as error:
            self._blocked(error)

    def _tell(self, alerts: Iterable[Alert], *, loud: bool = False) -> None:
        """Record alerts, put them into the event data, hand them on; in this order."""
        said = []
        for alert in alerts:
            alert = dataclasses.replace(alert, seq=self._sequence(), run=alert.run or self.name)
            self._last_alert_seq = alert.seq
            self._ledger.append_alert(alert)
            self.alerts.append(alert)
            said.append(alert)
        with self._writing():
            for alert in said:
                self._writer.add_alert(alert)
            self._publish_state()
        for alert in said:
            if self._outbox is not None:
                self._outbox.submit(alert)
            if loud or alert.kind != "degradation":
                self._console.notice(Notice(run=self.name, text=alert.message, mark="warning"))

    def _publish_state(self, *, alive: bool = True) -> None:
        watcher = {
            "alive": alive,
            "seen": self._clock.time(),
            "every": NETWORK_SECONDS,
            "queue": len(self.pending),
            "current": "",
            "message": self.last_error,
        }
        state = self._parts.state(self.history, self.alerts, run=self.name, watcher=watcher)
        self._writer.set_state(state)
        self._writer.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk must not stop the scoring."""
        try:
            yield
        except (OutputError, OSError) as error:
            self._blocked(error)

    def _blocked(self, error: BaseException | None) -> None:
        self._behind = True
        self._next_recovery = self._clock.monotonic() + RECOVER_SECONDS
        reason = getattr(error, "strerror", None) or str(error)
        if not self._trouble:
            self._trouble = reason
            self._trouble_episode += 1
            text = f"results cannot be written to {self.out} ({reason}); scoring goes on in memory"
            self._problem("", text, "disk")
            self._tell_health("disk", self._trouble_episode, "firing", text)

    def _recover(self, now: float) -> None:
        """Try to write what could not be written."""
        self._next_recovery = now + RECOVER_SECONDS
        if not self._ledger.retry():
            return
        try:
            alive = getattr(self._writer, "alive", True)
            if self._behind or not alive:
                state = self._parts.state(self.history, self.alerts, run=self.name, watcher=None)
                self._writer.reopen(self._full_evaluations(), self.alerts, state)
            line = Series.from_evaluations(self.history)
            best.publish(
                self.out, self.folder, best.describe(self.folder, line, self.locate, self._keeper.path)
            )
        except (OutputError, OSError):
            return
        self._behind, self._next_recovery, self._trouble = False, math.inf, ""
        text = f"results can be written to {self.out} again; nothing was lost"
        self._console.notice(Notice(run=self.name, text=text))
        self._tell_health("disk", self._trouble_episode, "resolved", text)

    def _tell_health(self, topic: str, episode: int, status: str, text: str) -> None:
        alert = Alert(
            kind="health",
            status=status,
            run=self.name,
            message=text,
            key=f"{self.name}/{topic}/{episode}/{status}",
            wall_time=self._clock.time(),
        )
        alert = dataclasses.replace(alert, seq=self._sequence())
        self._last_alert_seq = alert.seq
        self._ledger.append_alert(alert)
        self.alerts.append(alert)
        if self._outbox is not None:
            self._outbox.submit(alert)

    def locate(self, evaluation: Evaluation) -> str | None:
        """Path of a file that still holds the version evaluated; a name that stays is preferred."""
        paths = (evaluation.source.path, *evaluation.source.aliases)
        for path in sorted(paths, key=self._parts.is_rolling):
            with contextlib.suppress(OSError):
                mark = stamp(self.folder / path)
                if self._versions.find(path, mark) == evaluation.seq:
                    return path
        return None

    # Saying.

    def _header(self, request: str) -> None:
        scored = self.history.count("scored")
        known = f"{scored} already scored" if len(self.history) else "nothing scored yet"
        self._console.header(Header(label="run", text=str(self.folder), aside=known, run=self.name))
        if request and request != self._options.request:
            text = "other settings than before: what is there is measured again, on a line of its own"
            self._console.header(Header(label="settings", text=text, run=self.name))
        if len(self.history):
            self.describe_encoder(self.history[-1])
        self._console.header(
            Header(
                label="output",
                text=str(self.out),
                aside=f"tensorboard --logdir {self.folder.parent}",
                run=self.name,
            )
        )

    def describe_encoder(self, evaluation: Evaluation) -> None:
        """Say once which network is measured."""
        source = evaluation.source
        if source.arch and f"encoder {source.arch}" not in self._said:
            self._said.add(f"encoder {source.arch}")
            aside = f"{source.encoder} of a {source.layout} checkpoint" if source.layout else source.encoder
            self._console.header(Header(label="encoder", text=source.arch, aside=aside, run=self.name))

    def _say(self, evaluation: Evaluation, line: Series, told: Sequence[Alert]) -> None:
        if evaluation.status != "scored" or evaluation.components is None:
            self.last_error = evaluation.reason
            self.failed_now.add(evaluation.source.path)
            kind = f"{evaluation.error} {evaluation.source.layout}"
            self._problem(evaluation.source.path, evaluation.reason, kind)
            return
        self.failed_now.discard(evaluation.source.path)
        self.describe_encoder(evaluation)
        index = next((k for k, e in enumerate(line.evaluations) if e.seq == evaluation.seq), None)
        if index is None:
            return
        others = [float(value) for k, value in enumerate(line.dse) if k != index]
        degradation = next((alert for alert in told if alert.kind == "degradation"), None)
        is_best = line.best == index
        self._console.row(
            Row(
                run=self.name,
                path=evaluation.source.path,
                axis=line.axis,
                x=float(line.x[index]),
                dse=float(line.dse[index]),
                dse_se=float(line.dse_se[index]),
                delta=float(line.dse[index]) - max(others) if others else None,
                separability=float(line.separability[index]),
                m_dim=float(line.m_dim[index]),
                lam=line.lam,
                seconds=evaluation.seconds.get("total", 0.0),
                best=is_best,
                mark="" if is_best else self._mark(degradation),
                story=degradation.message if degradation is not None else "",
            )
        )

    def _mark(self, alert: Alert | None) -> str:
        """The state of the degradation rule in a few words."""
        if alert is not None and alert.status == "resolved":
            return "recovered"
        status = self._book.states["degradation"]
        since = "" if status.since is None else f" since {status.since:g}"
        if status.status == "firing":
            return f"{'DEGRADED' if alert is not None else 'degraded'}{since}"
        return f"pending{since}" if status.status == "pending" else ""

    def _problem(self, path: str, reason: str, kind: str) -> None:
        self.last_error = reason
        self._console.problem(Problem(run=self.name, path=path, reason=reason, kind=kind))

    def _notice(self, text: str) -> None:
        self._console.notice(Notice(run=self.name, text=text))

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._notice(text)

    def _say_slow(self, now: float) -> None:
        """A file that is not whole and does not grow is worth one line."""
        assert self._settler is not None
        for file in self._settler.waiting.values():
            if file.tests and now - file.since > SLOW_SECONDS:
                self._say_once(
                    f"slow {file.path} {file.stamp.mtime_ns}", f"waiting: {file.path} {file.reason}"
                )

    def waiting_for(self) -> str:
        """The file that is being written now, in words; empty if there is none."""
        if self._settler is None or not self._settler.waiting:
            return ""
        file = max(self._settler.waiting.values(), key=lambda file: file.since)
        growing = ", still growing" if file.grew else ""
        return f"waiting: {file.path} {file.reason} ({_size(file.stamp.size)}{growing})"

    def done(self, epoch: float | None, step: int | None) -> bool:
        """Whether a checkpoint with so many epochs or steps done was dealt with, and nothing waits."""
        if not self.idle:
            return False
        return any(
            (epoch is not None and self._reached(evaluation, "epoch") >= epoch)
            or (step is not None and self._reached(evaluation, "step") >= step)
            for evaluation in self.history
        )

    def _reached(self, evaluation: Evaluation, axis: str) -> float:
        source, facts = evaluation.source, self._parts.from_name(evaluation.source.path)
        inside = source.epoch if axis == "epoch" else source.step
        named = facts.epoch_done if axis == "epoch" else facts.step_done
        found = inside if inside is not None else named
        return -math.inf if found is None else float(found)

    def _beat(self, state: str, **facts: Any) -> heartbeat.Heartbeat:
        failed = self.history.count("failed") + self.history.count("invalid")
        return heartbeat.new(
            dse_monitor.__version__,
            self._clock.time(),
            state=state,
            since=self._since,
            scored=self.history.count("scored"),
            failed=failed,
            queue=len(self.pending),
            settling=self.settling,
            skipped=len(self.skipped),
            present=self._scanner.count,
            last_error=self.last_error,
            **facts,
        )

    def beat(
        self, state: str, current: str = "", progress: tuple[str, int, int] | None = None, message: str = ""
    ) -> None:
        """Write what is being done now; a full disk is noticed elsewhere."""
        if not self.open:
            return
        next_scan = max(0.0, self._next_scan - self._clock.monotonic())
        message = message or self.waiting_for()
        beat = self._beat(state, current=current, progress=progress, message=message, next_scan=next_scan)
        with contextlib.suppress(OSError):
            beat.write(self.out)


def _same_content(one: Candidate, other: Candidate) -> bool:
    if one.content_key is not None and one.content_key == other.content_key:
        return True
    a, b = one.stamp, other.stamp
    return (a.inode, a.size, a.mtime_ns) == (b.inode, b.size, b.mtime_ns)


def _same_progress(known: Evaluation, new: Evaluation) -> bool:
    """Whether the same encoder also claims the same place; one that claims none adds nothing."""
    place = (new.source.epoch, new.source.step)
    return place == (known.source.epoch, known.source.step) or place == (None, None)


def _size(size: int) -> str:
    for limit, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if size >= limit:
            return f"{size / limit:.1f} {unit}"
    return f"{size} B"
