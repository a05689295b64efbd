"""Through the folders below one, breadth first, checkpoint-like names first, and whose run each belongs to.

Real folders come before links to them, so that a folder is met under its own name. Nothing is remembered from
one walk to the next: what could not be read, or was empty, is looked at again.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from dse_monitor.runs.identity import FOLDER_MARKER, SHARD_SUFFIX
from dse_monitor.runs.ledger import NAME as LEDGER
from dse_monitor.runs.record import OUTPUT_FOLDER
from dse_monitor.watch.files.folders import EVENTS, EVIDENCE, FOREIGN, JOBS, Kind, kind_of

ENTRY_LIMIT = 500_000  # directory entries looked at per walk; chosen by us, about 0.5 s
EXAMPLES = 50  # checkpoints of a run whose names are kept to judge it by; chosen by us
NAMED = 3  # folders named where not all could be looked at; chosen by us

Joining = Literal["rule", "one", "many"]  # folders are joined to runs by the rule, all of them, or none

_SINGLE = (".pt", ".pth", ".ckpt")  # files that are checkpoints themselves, wherever they lie
_INDEX = ".index.json"
_RANK = {Kind.PART: 0, Kind.COUNT: 0, Kind.NUMBER: 1, Kind.RUN: 2, Kind.OTHER: 3}


@dataclass(eq=False, slots=True)
class Head:
    """A folder that may be a run, and what the folders below it that are no such ones hold.

    Attributes:
        path: the folder; the real one where a link led to it.
        kind: what its name says.
        above: the next one above; None at the top.
        inside: its path below that one, ending with a slash.
        claim: why it is a run for certain; empty if that depends on what lies in it.
        count: checkpoints that belong to it.
        examples: some of them, relative to it.
        jobs: whether numbered folders in it are jobs of their own.
        joined: the one above that it belongs to; None while it stands for itself.
    """

    path: str
    kind: Kind
    above: Head | None = None
    inside: str = ""
    claim: str = ""
    count: int = 0
    examples: list[str] = field(default_factory=list)
    jobs: bool = False
    joined: Head | None = None

    @property
    def run(self) -> Head:
        """The run that it belongs to; certain once :func:`settle` was called."""
        return self if self.joined is None else self.joined.run

    def add(self, path: str) -> None:
        """A checkpoint that belongs to it, by its path relative to it."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(path)

    def join(self, above: Head) -> None:
        """Hand over what it has to one above."""
        self.joined = above
        inside, step = self.inside, self.above
        while step is not None and step is not above:
            inside, step = step.inside + inside, step.above
        above.count += self.count
        above.examples += [inside + path for path in self.examples[: EXAMPLES - len(above.examples)]]


def settle(heads: list[Head], tells_count: Callable[[str], bool]) -> None:
    """Decide which folders are runs, once it is known what lies in each.

    A folder whose name says nothing goes with a counted run above if what lies in it has no count of its own.
    A numbered folder is a checkpoint of the run above, unless what lies in it is counted again or runs lie
    beside it.

    Args:
        heads: all of one walk, those above first.
        tells_count: whether a path tells an epoch, a step or another count.
    """
    holding = [head for head in heads if head.count]
    counted = {head for head in holding if any(map(tells_count, head.examples))}
    certain = {head for head in holding if head.claim or head.above is None}
    for head in holding:
        if head not in certain | counted and head.kind is not Kind.NUMBER and head.above is not None:
            above = head.above.run
            if above in counted or (above in certain and above.claim):
                head.join(above)
    runs_in = {head.above for head in holding if head.kind is not Kind.NUMBER and head.joined is None}
    for head in reversed(heads):
        if not head.count or head.kind is not Kind.NUMBER or head in certain or head in counted:
            continue
        if head.above is not None and (head.above not in runs_in or head.above in counted):
            head.join(head.above)


@dataclass(eq=False, slots=True)
class Folder:
    """One folder that was listed.

    Attributes:
        path: where it is.
        relative: its path below the start, ending with a slash; empty at the start.
        inside: the same below the head.
        head: the folder it belongs to.
        files: its files that are not foreign by their names, links at the end.
        is_checkpoint: whether it is one checkpoint in many files; then no files are listed.
        watched: whether a ledger lies in its output folder.
    """

    path: str
    relative: str
    inside: str
    head: Head
    files: list[os.DirEntry[str]] = field(default_factory=list)
    is_checkpoint: bool = False
    watched: bool = False


@dataclass(eq=False, slots=True)
class _Listing:
    """What lies in a folder."""

    files: list[os.DirEntry[str]] = field(default_factory=list)
    folders: list[os.DirEntry[str]] = field(default_factory=list)
    links: list[os.DirEntry[str]] = field(default_factory=list)  # to folders
    evidence: str = ""
    jobs: bool = False
    watched: bool = False
    is_checkpoint: bool = False


class Walk:
    """One walk.

    Args:
        root: where it starts; need not be readable.
        names_checkpoint: whether a folder's path says that it is one checkpoint in many files.
        joining: how folders are joined to runs.
        skip: folders that are never entered, absolute.
        elsewhere: whether the target of a link, given as its real path, belongs to a run of its own.
        limit: directory entries that are looked at.

    Attributes:
        unread: folders that could not be listed, relative, ending with a slash.
        unlooked: folders that were not looked into because there were too many entries, relative.
        entries: how many were looked at.
        top: the head of the start.
        heads: every folder that may be a run, those above first.
    """

    def __init__(
        self,
        root: str,
        names_checkpoint: Callable[[str], bool] = lambda path: False,
        *,
        joining: Joining = "rule",
        skip: frozenset[str] = frozenset(),
        elsewhere: Callable[[str], bool] = lambda path: False,
        limit: int = ENTRY_LIMIT,
    ):
        self._joining, self._skip, self._elsewhere, self._limit = joining, skip, elsewhere, limit
        self.top = Head(root, Kind.OTHER)
        self.unread: list[str] = []
        self.unlooked: list[str] = []
        self.entries = 0
        self.heads = [self.top]
        self._names_checkpoint = names_checkpoint
        self._order = 0
        self._visited: set[tuple[int, int]] = set()
        self._waiting: list[tuple[bool, int, int, int, str, str, str, Head, Kind]] = []

    def __iter__(self) -> Iterator[Folder]:
        self._waiting = [(False, 0, 0, 0, self.top.path, "", "", self.top, Kind.OTHER)]
        while self._waiting:
            link, depth, _, _, path, relative, inside, head, kind = heapq.heappop(self._waiting)
            # What is named like checkpoints is looked into even where a heap of other files took it all.
            if self.entries >= self._limit * (2 if _RANK[kind] == 0 else 1):
                self.unlooked.append(relative)
                continue
            if not self._is_new(path) or (link and self._elsewhere(os.path.realpath(path))):
                continue
            try:
                listing = self._list(path, relative)
            except FileNotFoundError:
                continue
            except OSError:
                self.unread.append(relative)
                continue
            yield self._enter(listing, path, relative, inside, head, kind, depth, link)

    def _enter(
        self,
        listing: _Listing,
        path: str,
        relative: str,
        inside: str,
        above: Head,
        kind: Kind,
        depth: int,
        link: bool,
    ) -> Folder:
        if listing.is_checkpoint or (depth and self._names_checkpoint(relative.rstrip("/"))):
            if listing.is_checkpoint or not any(entry.name.endswith(_SINGLE) for entry in listing.files):
                return Folder(path, relative, inside, above, is_checkpoint=True)
        head = above
        if not depth:
            head.claim = listing.evidence
        elif self._begins(kind, listing):
            claim = self._claim(kind, listing, above, os.path.basename(path))
            head = Head(os.path.realpath(path) if link else path, kind, above, inside, claim)
            self.heads.append(head)
            inside = ""
        head.jobs = head.jobs or listing.jobs
        for entry in listing.folders:
            self._wait(entry, relative, inside, head, depth=depth + 1, link=link, is_link=False)
        for entry in listing.links:
            self._wait(entry, relative, inside, head, depth=depth + 1, link=True, is_link=True)
        return Folder(path, relative, inside, head, listing.files, watched=listing.watched)

    def _begins(self, kind: Kind, listing: _Listing) -> bool:
        """Whether a folder may be a run of its own."""
        if self._joining != "rule":
            return self._joining == "many"
        if kind is Kind.PART:
            return False
        return kind is not Kind.COUNT or bool(listing.evidence)

    def _claim(self, kind: Kind, listing: _Listing, above: Head, name: str) -> str:
        if self._joining == "many":
            return "--as-many"
        if listing.evidence:
            return f"{listing.evidence} in it"
        if kind is Kind.NUMBER and above.jobs:
            return f"{JOBS} beside it"
        return f"its name {name}" if kind is Kind.RUN else ""

    def _wait(
        self,
        entry: os.DirEntry[str],
        relative: str,
        inside: str,
        head: Head,
        *,
        depth: int,
        link: bool,
        is_link: bool,
    ) -> None:
        kind = kind_of(entry.name, link=is_link)
        if kind is Kind.CLOSED or (self._skip and os.path.abspath(entry.path) in self._skip):
            return
        self._order += 1
        name = entry.name + "/"
        at = (entry.path, relative + name, inside + name)
        heapq.heappush(self._waiting, (link, depth, _RANK[kind], self._order, *at, head, kind))

    def _is_new(self, path: str) -> bool:
        """Whether this folder was not entered yet; a link to an ancestor would never end."""
        try:
            found = os.stat(path)
        except OSError:
            return True  # listing it says what is wrong
        key = (found.st_dev, found.st_ino)
        if key in self._visited:
            return False
        self._visited.add(key)
        return True

    def _list(self, path: str, relative: str) -> _Listing:
        """What lies in a folder. A run may have a hundred thousand pictures: those are not kept.

        Raises:
            OSError: it cannot be listed.
        """
        found = _Listing()
        links: list[os.DirEntry[str]] = []
        with os.scandir(path) as listing:
            for entry in listing:
                self.entries += 1
                if self.entries > self._limit:
                    self.unlooked.append(relative)
                    break
                name = entry.name
                if entry.is_dir(follow_symlinks=False):
                    if name == OUTPUT_FOLDER and os.path.exists(os.path.join(entry.path, LEDGER)):
                        found.watched = True
                    elif name in EVIDENCE:
                        found.evidence = found.evidence or EVIDENCE[name]
                    else:
                        found.folders.append(entry)
                elif name in EVIDENCE:
                    found.evidence = found.evidence or EVIDENCE[name]
                elif name[name.rfind(".") :] in FOREIGN:
                    found.jobs = found.jobs or name == JOBS
                elif name.startswith(EVENTS):
                    found.evidence = f"event files ({EVENTS}...)"
                elif relative and (name == FOLDER_MARKER or name.endswith(SHARD_SUFFIX)):
                    return _Listing(is_checkpoint=True)
                elif entry.is_symlink():
                    links.append(entry)
                elif not name.endswith(".json") or name.endswith(_INDEX):
                    found.files.append(entry)
        for entry in links:
            if _is_folder(entry):
                found.links.append(entry)
            else:
                found.files.append(entry)
        return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def in_words(unlooked: list[str], unread: list[str]) -> str:
    """What a walk did not look at, to follow a colon; empty if that is nothing."""
    parts = []
    for folders, why in ((unlooked, "too many entries"), (unread, "cannot be read")):
        if folders:
            named = ", ".join(folder.rstrip("/") or "." for folder in folders[:NAMED])
            more = f" and {len(folders) - NAMED} more folders" if len(folders) > NAMED else ""
            parts.append(f"{named}{more} ({why})")
    return "; ".join(parts)
