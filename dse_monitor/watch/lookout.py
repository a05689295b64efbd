"""Finds the runs that are watched, and keeps finding: new ones, renamed ones, links to known ones.

A run is its folder, whatever path leads there: device and inode recognise it while it is watched. What is
remembered of it lies in its output folder, so a folder that is made again without that is a new run, and one
that is put back with it goes on.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from dse_monitor.watch.console import Console, Header, Notice
from dse_monitor.watch.dependencies import Dependencies
from dse_monitor.watch.files.discovery import FoundRun, Search
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.run.watched_run import WatchedRun

DISCOVER_SECONDS = 15.0  # between searches for new runs; chosen by us
FIRST_SECONDS = 2.0  # the same while there is none; chosen by us
COST_FACTOR = 100.0  # times as long as a search took, until the next: one per cent of a core; chosen by us
SHOWN = 10  # runs of which more than the name is said at the start; chosen by us


class Lookout:
    """The runs of one watch.

    Args:
        options: what the user asked for.
        dependencies: the pieces of other packages.
        console: says what was found and why.
        make_run: makes a watched run from its folder, its output folder and its name.

    Attributes:
        runs: what is watched, by folder.
        unlooked: whether a search did not look at everything.
        due: when to look again, monotonic seconds.
    """

    def __init__(
        self,
        options: WatchOptions,
        dependencies: Dependencies,
        console: Console,
        make_run: Callable[[Path, Path, str], WatchedRun],
    ):
        self._options, self._console, self._make_run = options, console, make_run
        self._search = Search.of(
            dependencies,
            joining=options.joining,
            chosen=options.only,
            skip=frozenset() if options.out is None else frozenset({os.path.abspath(options.out)}),
        )
        self.runs: dict[Path, WatchedRun] = {}
        self._origins: dict[Path, Path] = {}  # of each run, the folder it was found in or below
        self._said: set[str] = set()
        self._waiting_reported = False
        self.unlooked = False
        self.due = -math.inf

    def look(self, now: float) -> None:
        """Find runs, if that is due; with `once` a folder without any is taken for a run itself."""
        if now < self.due:
            return
        begin = time.thread_time()
        self._follow_renamed()
        for path in self._options.runs:
            folder = Path(os.path.realpath(path)) if path.is_symlink() else path  # under its real name
            run = self.runs.get(folder)
            if run is None or run.sees_others:
                self._look_in(folder)
        spent = COST_FACTOR * (time.thread_time() - begin)
        if self.runs:
            self.due = now + max(self._options.poll_seconds or DISCOVER_SECONDS, spent)
            return
        self.due = now + max(FIRST_SECONDS, spent)
        if not self._waiting_reported:
            self._waiting_reported = True
            names = ", ".join(str(folder) for folder in self._options.runs)
            self._notice(f"no checkpoint in {names} yet; waiting for the first")

    def is_given(self, run: WatchedRun) -> bool:
        """Whether the user named this very folder, not one above it."""
        return self._origins.get(run.folder) == run.folder

    def _look_in(self, folder: Path) -> None:
        survey = self._search(folder)
        self.unlooked = self.unlooked or bool(survey.unlooked)
        if survey.unlooked:
            self._once(f"{folder}: checkpoints may be missed, not looked at: {survey.unlooked}")
        for note in survey.notes:
            self._once(note)
        new = [run for run in survey.runs if self._add(run.folder, folder)]
        if new:
            self._say(folder, new)
        nothing = folder not in self.runs and folder not in self._origins.values()
        if nothing and self._options.once and not self._options.only:
            self._add(folder, folder)

    def _add(self, folder: Path, origin: Path, out: Path | None = None) -> bool:
        """Watch a run, unless it is watched already under this or another path."""
        if folder in self.runs:
            return False
        here = _identity(folder)
        known = next((run for run in self.runs.values() if here and run.identity == here), None)
        if known is not None:
            if _identity(known.folder) == here:
                return False  # another path to the same folder
            out = self._let_go(known)
            self._notice(f"{known.name} was renamed: {known.folder} is now {folder}; going on there")
        name = self._name(folder, origin)
        place = self._options.output(folder, None if origin == folder else origin) if out is None else out
        self.runs[folder] = self._make_run(folder, place, name)
        self.runs[folder].identity = here
        self._origins[folder] = origin
        self._console.several = self._console.several or len(self.runs) > 1 or origin != folder
        return known is None

    def _let_go(self, run: WatchedRun) -> Path | None:
        """Watch a run no more at its old path; its output folder, if that did not move with it."""
        run.leave()
        del self.runs[run.folder]
        self._origins.pop(run.folder, None)
        return None if run.out.is_relative_to(run.folder) else run.out

    def _follow_renamed(self) -> None:
        """A watched folder that is gone may stand beside its old place under another name."""
        for folder, run in list(self.runs.items()):
            if run.identity is None or _identity(folder) is not None:
                continue
            origin = self._origins[folder]
            for beside in _folders(folder.parent):
                if _identity(beside) == run.identity:
                    self._add(beside, beside if origin == folder else origin)
                    break

    def _name(self, folder: Path, origin: Path) -> str:
        """A name for people that no other run has."""
        taken = {run.name for run in self.runs.values()}
        names = [folder.name or str(folder), "/".join(folder.parts[-2:]), str(folder)]
        if origin != folder and folder.is_relative_to(origin):
            names.insert(1, str(folder.relative_to(origin)))
            names.insert(2, str(folder.relative_to(origin.parent)))
        return next((name for name in names if name not in taken), str(folder))

    def _say(self, folder: Path, new: list[FoundRun]) -> None:
        """What was found, and why; in full where it is not simply the folder that was given."""
        if len(new) == 1 and new[0].folder == folder:
            self._found(new[0].in_words(), new[0].reason)
            return
        names = ", ".join(self.runs[run.folder].name for run in new)
        self._found(f"{len(new)} {'run' if len(new) == 1 else 'runs'} in {folder}: {names}")
        for run in new[:SHOWN]:
            self._found(f"{self.runs[run.folder].name}: {run.in_words()}", run.reason)
        if len(new) > SHOWN:
            self._found(f"and {len(new) - SHOWN} more; `dse-monitor runs {folder}` lists them")

    def _found(self, text: str, reason: str = "") -> None:
        self._console.header(Header(label="found", text=text, aside=f"({reason})" if reason else ""))

    def _once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._notice(text, mark="warning")

    def _notice(self, text: str, mark: str = "") -> None:
        self._console.notice(Notice(run="", text=text, mark=mark))


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None if it is none or cannot be looked at."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _folders(parent: Path) -> list[Path]:
    try:
        with os.scandir(parent) as listing:
            return [parent / entry.name for entry in listing if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
