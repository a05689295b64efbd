"""Which folders are runs? `watch runs/` follows each run below it, also those that begin later.

The training that wrote the files is one run, however its checkpoints are foldered, and two trainings are
never one: the rule is in folders.py and walk.py, with an example of each layout in layouts.py. A folder that
was watched before, and holds no checkpoint now, is a run as well. A folder without any run is waited for.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dse_monitor.checkpoints.names import NameFacts
from dse_monitor.runs.ledger import NAME as LEDGER
from dse_monitor.runs.record import OUTPUT_FOLDER
from dse_monitor.watch.files import walk
from dse_monitor.watch.files.contents import Contents
from dse_monitor.watch.files.folders import Kind, kind_of
from dse_monitor.watch.files.walk import ENTRY_LIMIT, Folder, Head, Joining, Walk


@dataclass(frozen=True)
class FoundRun:
    """One run.

    Attributes:
        folder: where it is; the real folder where a link led to it.
        checkpoints: how many files and folders may be checkpoints of it.
        example: one of them, relative to it; empty while there is none.
        writer: code that names them so; empty if none is known.
        reason: why it is a run of its own, in words.
    """

    folder: Path
    checkpoints: int
    example: str
    writer: str
    reason: str

    def in_words(self) -> str:
        """How many checkpoints, and how they are named."""
        if not self.checkpoints:
            return "no checkpoint now"
        plural = "checkpoint" if self.checkpoints == 1 else "checkpoints"
        known = self.writer and not self.writer.startswith("a ")  # not only a kind of name
        writer = f", named as by {self.writer}" if known else ""
        return f"{self.checkpoints:,} {plural} such as {self.example}{writer}"


@dataclass(frozen=True)
class Survey:
    """What was found below a folder.

    Attributes:
        runs: sorted by folder.
        unlooked: what was not looked at, in words; empty if there is nothing.
        notes: what else is worth knowing, in full sentences.
    """

    runs: tuple[FoundRun, ...]
    unlooked: str = ""
    notes: tuple[str, ...] = ()


class SearchParts(Protocol):
    """The pieces of other packages that a search needs; see watch/dependencies.py."""

    @property
    def is_candidate(self) -> Callable[[str], bool]:
        """Judges a path below a run by its name."""
        ...

    @property
    def is_rolling(self) -> Callable[[str], bool]:
        """Judges a name that is written over and over."""
        ...

    @property
    def from_name(self) -> Callable[[str], NameFacts]:
        """What a path says about progress."""
        ...

    @property
    def may_hold_weights(self) -> Callable[[str], bool]:
        """Whether a file whose path does not say so may be a checkpoint all the same."""
        ...

    @property
    def holds_weights(self) -> Callable[[str], bool]:
        """Whether a file begins as one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Search:
    """How runs are looked for.

    Attributes:
        is_candidate: judges a path below a run by its name.
        is_rolling: judges a name that is written over and over.
        from_name: what a path says about progress.
        contents: judges files whose names say nothing; None to go by names alone.
        joining: how folders are joined to runs.
        chosen: patterns of which one must fit a run's name or its path below the start; all runs if empty.
        skip: folders that are never entered.
        entry_limit: directory entries that are looked at.
    """

    is_candidate: Callable[[str], bool]
    is_rolling: Callable[[str], bool]
    from_name: Callable[[str], NameFacts]
    contents: Contents | None = None
    joining: Joining = "rule"
    chosen: Sequence[str] = ()
    skip: frozenset[str] = frozenset()
    entry_limit: int = ENTRY_LIMIT

    @classmethod
    def of(cls, parts: SearchParts, **options: Any) -> Search:
        """A search with the pieces of other packages that a watch has."""
        return cls(
            is_candidate=parts.is_candidate,
            is_rolling=parts.is_rolling,
            from_name=parts.from_name,
            contents=Contents(parts.may_hold_weights, parts.holds_weights),
            **options,
        )

    def __call__(self, folder: Path) -> Survey:
        """The runs in or below a folder; none while there is no checkpoint."""
        walked = Walk(
            os.fspath(folder),
            self.is_candidate,
            joining=self.joining,
            skip=self.skip,
            limit=self.entry_limit,
        )
        watched: list[tuple[str, Head, Kind]] = []
        if self.contents is not None:
            self.contents.begin()
        for place in walked:
            for path in self._checkpoints(place):
                place.head.add(path)
            if place.watched:
                path = place.path if place.inside else place.head.path  # the real one behind a link
                watched.append((path, place.head, kind_of(os.path.basename(path))))
        walk.settle(walked.heads, lambda path: bool(self.from_name(path).pattern))
        heads = {head.path: head for head in walked.heads if head.run is head and head.count}
        stray = [head for head in heads.values() if self._lies_beside_runs(head, heads)]
        for head in stray:
            del heads[head.path]
        runs = [self._found(head, walked.top) for head in heads.values()]
        again, notes = _watched_before(watched, heads)
        runs += again
        notes += [f"{head.path}/{head.examples[0]} lies beside runs and belongs to none" for head in stray]
        if self.chosen:
            runs = [run for run in runs if _fits(run.folder, folder, self.chosen)]
        unlooked = walk.in_words(walked.unlooked, walked.unread)
        if self.contents is not None and self.contents.exhausted:
            unlooked = f"{unlooked}; " * bool(unlooked) + "the first bytes of many files of unknown kind"
        return Survey(tuple(sorted(runs, key=lambda run: run.folder)), unlooked, tuple(notes))

    def _checkpoints(self, place: Folder) -> list[str]:
        """Checkpoints in a folder, relative to its head."""
        if place.is_checkpoint:
            return [place.inside.rstrip("/")]
        return [
            place.inside + entry.name
            for entry in place.files
            if self.is_candidate(place.inside + entry.name)
            or (self.contents is not None and self.contents(place.inside + entry.name, entry))
        ]

    def _lies_beside_runs(self, head: Head, heads: dict[str, Head]) -> bool:
        """Whether a folder holds weights that runs below it begin from, and no checkpoints of its own."""
        if head.claim or self.joining != "rule":
            return False
        if any(self.from_name(path).pattern or self.is_rolling(path) for path in head.examples):
            return False
        return any(other.startswith(head.path.rstrip("/") + "/") for other in heads)

    def _found(self, head: Head, top: Head) -> FoundRun:
        counted = [path for path in head.examples if self.from_name(path).pattern]
        named = min(counted or head.examples, key=lambda path: (len(path), path))
        return FoundRun(
            folder=Path(head.path),
            checkpoints=head.count,
            example=named,
            writer=self.from_name(named).writer,
            reason="--as-one" if self.joining == "one" else _reason(head, top, named),
        )


def _reason(head: Head, top: Head, example: str) -> str:
    if head.claim:
        return head.claim
    if head is top and "/" in example:
        return f"checkpoints lie in {example.rpartition('/')[0]} below the folder given"
    if head is top:
        return "checkpoints lie in the folder given"
    inside = example.rpartition("/")[0]
    return f"checkpoints lie in its {inside}" if inside else "checkpoints lie in it"


def _watched_before(
    watched: list[tuple[str, Head, Kind]], heads: dict[str, Head]
) -> tuple[list[FoundRun], list[str]]:
    """Runs that were watched before and hold no checkpoint now, and notes on what is a run no more."""
    runs, notes = [], []
    for path, head, kind in watched:
        if path in heads:
            continue
        below = [other for other in heads if other.startswith(path.rstrip("/") + "/")]
        scores = f"its earlier scores stay in {os.path.join(path, OUTPUT_FOLDER)}"
        if below:
            notes.append(f"{path} was watched as one run and holds {len(below)}; {scores}")
        elif kind in (Kind.COUNT, Kind.PART, Kind.NUMBER) and head.run.count:
            notes.append(f"{path} was watched as a run and is part of {head.run.path}; {scores}")
        else:
            reason = f"{OUTPUT_FOLDER}/{LEDGER} in it: it was watched before"
            runs.append(FoundRun(Path(path), 0, "", "", reason))
    return runs, notes


def _fits(run: Path, start: Path, patterns: Sequence[str]) -> bool:
    relative = os.path.relpath(run, start)
    return any(fnmatch.fnmatch(name, pattern) for name in (run.name, relative) for pattern in patterns)
