"""When a run's folder is looked at, and what has been seen there: scans, change events, files that settle."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING

from dse_monitor.watch.files import mounts
from dse_monitor.watch.files.contents import Contents
from dse_monitor.watch.files.folders import EVENTS, FOREIGN
from dse_monitor.watch.files.scanner import Scan, Scanner
from dse_monitor.watch.files.settle import Settled, Settler
from dse_monitor.watch.run.context import RunContext

if TYPE_CHECKING:
    from dse_monitor.watch.dependencies import ChangeEvents

SCAN_SECONDS = 15.0  # between scans of a local folder; chosen by us
UNSETTLED_SECONDS = 5.0  # the same while a file is being written and no events come; chosen by us
NETWORK_SECONDS = 60.0  # between scans of a network disk while nothing is being written; chosen by us
DEEP_SECONDS = 120.0  # between scans that stat every known file again, where events come; chosen by us
HINT_SECONDS = 0.5  # least time between scans that change events ask for; chosen by us
COST_FACTOR = 100.0  # times as long as a scan took, until the next: one per cent of a core; chosen by us
WAIT_FACTOR = 10.0  # the same in time that passed, so that a slow disk is spared; chosen by us
HINT_FACTOR = 20.0  # the same where change events ask for a scan; chosen by us
SLOW_SECONDS = 60.0  # s without growth after which an incomplete file is reported; chosen by us


class Poller:
    """Sees the files of one run; what they mean is decided elsewhere (intake.py).

    Args:
        context: the run.

    Attributes:
        settler: files that are not ready yet.
        scans: scans that could read the folder so far.
        next_scan: when the folder is scanned next, monotonic seconds.
    """

    def __init__(self, context: RunContext):
        self._context = context
        dependencies = context.dependencies
        self._contents = Contents(dependencies.may_hold_weights, dependencies.holds_weights)
        self._scanner = Scanner(
            context.folder,
            dependencies.is_candidate,
            dependencies.is_rolling,
            holds_weights=self._contents,
            tells_count=lambda path: bool(dependencies.from_name(path).pattern),
            joining=context.options.joining,
            skip=context.out,
            elsewhere=context.elsewhere,
        )
        self._events: ChangeEvents | None = None
        self._network = False
        self._cost = 0.0  # processor time of the last scan, seconds
        self._last_scan = self._last_deep = -math.inf
        self.settler = self._make_settler("")
        self.scans = 0
        self.next_scan = -math.inf

    @property
    def due(self) -> float:
        """When there is something to do next, monotonic seconds."""
        settle = self.settler.due()
        return self.next_scan if settle is None else min(self.next_scan, settle)

    @property
    def candidates(self) -> int:
        """Candidates present at the last scan."""
        return self._scanner.count

    @property
    def paths(self) -> list[str]:
        """The candidates present at the last scan."""
        return self._scanner.paths

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the folder at the last scan that could read it."""
        return self._scanner.identity

    @property
    def sees_others(self) -> bool:
        """Whether the last scan found folders that are runs of their own."""
        return bool(self._scanner.others)

    def has(self, path: str) -> bool:
        """Whether a candidate was there at the last scan."""
        return self._scanner.has(path)

    def missed(self, path: str) -> None:
        """Have this candidate reported again by the next scan (its last report came to nothing)."""
        self._scanner.missed(path)

    def look_again(self, path: str) -> None:
        """Scan at once, and have this candidate reported again: it was rewritten meanwhile."""
        self._scanner.missed(path)
        self.next_scan = self._context.clock.monotonic()

    def listen(self) -> None:
        """Choose how to follow the folder by its filesystem, and listen for change events where they come."""
        options, report = self._context.options, self._context.report
        kind = mounts.filesystem(self._context.folder)
        self._network = mounts.is_network(kind)
        self.settler = self._make_settler(kind)
        make_events = self._context.dependencies.hints
        if options.poll_seconds is not None or options.once or make_events is None:
            return
        if self._network:
            text = f"{kind} sends no change events; looking every {NETWORK_SECONDS:.0f} s"
            report.once("network", text)
            return
        try:
            self._events = make_events(self._context.folder, self._context.wake, self._context.out)
            self._events.start()
        except OSError as error:
            self._events = None
            reason = error.strerror or str(error)
            report.once("hints", f"no change events ({reason}); looking every {SCAN_SECONDS:.0f} s")

    def stop_listening(self) -> None:
        """End the source of change events."""
        if self._events is not None:
            self._events.stop()
            self._events = None

    def follow_replaced_folder(self) -> None:
        """Listen to the folder that took the place of the one that was listened to."""
        if self._events is not None:
            self.stop_listening()
            self.listen()

    def take_events(self, now: float) -> None:
        """Scan earlier, or look at a waiting file earlier, where change events say that it is worth it."""
        paths = self._events.take() if self._events is not None else None
        soon = max(now, self._last_scan + max(HINT_SECONDS, HINT_FACTOR * self._cost))
        for path in paths or ():
            if path[path.rfind(".") :] in FOREIGN or f"/{path}".rpartition("/")[2].startswith(EVENTS):
                continue  # a picture, a log: written all the time, and no scan is needed for it
            if self.settler.touch(path, soon):
                continue
            if self._scanner.has(path):
                self._scanner.missed(path)
            self.next_scan = min(self.next_scan, soon)

    def scan(self, now: float) -> Scan:
        """Look for new, changed and removed candidates."""
        listening = self._events is not None and self._events.alive
        pause = self._pause(listening)
        deep = not self.scans or now - self._last_deep >= (DEEP_SECONDS if listening else pause)
        self._contents.begin()
        begin = time.thread_time()
        scan = self._scanner.scan(deep=deep)
        if self._contents.exhausted:
            more = "the first bytes of many files of unknown kind"
            scan = dataclasses.replace(scan, unlooked="; ".join(filter(None, (scan.unlooked, more))))
        self._cost = time.thread_time() - begin
        waited = self._context.clock.monotonic() - now  # mostly for a network disk
        self._last_scan = now
        self.next_scan = now + max(pause, COST_FACTOR * self._cost, WAIT_FACTOR * waited)
        self._last_deep = now if deep else self._last_deep
        self.scans += scan.state == "ok"
        return scan

    def report_slow(self, now: float) -> None:
        """Report files that have been incomplete for long without growing."""
        for file in self.settler.waiting.values():
            if file.tests and now - file.since > SLOW_SECONDS:
                key = f"slow {file.path} {file.stamp.mtime_ns}"
                self._context.report.once(key, f"waiting: {file.path} {file.reason}")

    def settled(self, now: float) -> list[Settled]:
        """Files that became ready, were abandoned by their writer or went away."""
        return self.settler.step(now)

    def waiting_for(self) -> str:
        """The file that is being written now, in words; empty if there is none."""
        if not self.settler.waiting:
            return ""
        file = max(self.settler.waiting.values(), key=lambda file: file.since)
        growing = ", still growing" if file.grew else ""
        return f"waiting: {file.path} {file.reason} ({_size(file.stamp.size)}{growing})"

    def _pause(self, listening: bool) -> float:
        poll_seconds = self._context.options.poll_seconds
        if poll_seconds is not None:
            return max(poll_seconds, 0.05)
        unsettled = bool(self.settler.waiting)
        if self._network:
            return SCAN_SECONDS if unsettled else NETWORK_SECONDS
        return UNSETTLED_SECONDS if unsettled and not listening else SCAN_SECONDS

    def _make_settler(self, kind: str) -> Settler:
        options = self._context.options
        asked = options.settle_seconds
        return Settler(
            self._context.folder,
            mounts.settle_seconds(kind) if asked is None else asked,
            self._context.dependencies.check_complete,
            impatient=options.once,
        )


def _size(size: int) -> str:
    for limit, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if size >= limit:
            return f"{size / limit:.1f} {unit}"
    return f"{size} B"
