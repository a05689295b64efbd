"""Which checkpoint is evaluated next, and which are passed over because the user asked for it."""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from dse_monitor.checkpoints.names import NameFacts
from dse_monitor.runs.identity import Stamp
from dse_monitor.watch.options import WatchOptions, since_rule

_Place = tuple[Any, ...]  # where a candidate sorts; its path comes last
_appeared = itemgetter(0)

REMEMBERED = 1000  # files whose first sight is remembered, to learn how long files live; chosen by us


@dataclass(frozen=True, slots=True)
class Candidate:
    """A whole, still file that waits to be evaluated.

    Attributes:
        path: relative to the run.
        stamp: the version meant.
        content_key: see identity.content_key.
        done: epochs or steps done by its name, for sorting; below all others when it tells none.
        rolling: whether its name is written over and over.
        appeared: when it was first seen, monotonic seconds; 0 for files that were there before the watcher.
        versions: versions of it that were passed over since the last evaluation.
    """

    path: str
    stamp: Stamp
    content_key: str | None
    done: float
    rolling: bool
    appeared: float = 0.0
    versions: int = 0

    @property
    def contents(self) -> tuple[object, ...]:
        """What two candidates of certainly one content share: a hard link, or a copy with true checksums."""
        link = (self.stamp.inode, self.stamp.size, self.stamp.mtime_ns)
        return (link,) if self.content_key is None else (link, self.content_key)


class Queue:
    """The checkpoints of one run that are ready.

    Newest first, so that the present is known soon and the backlog follows; files about to be rotated away
    before all others. When nobody writes any more (``once``), in training order. Ten thousand may wait: they
    are kept sorted, and found by their content.

    Args:
        once: whether nobody writes any more.
    """

    def __init__(self, *, once: bool = False):
        self._once = once
        self._ready: dict[str, Candidate] = {}
        self._rolling: list[_Place] = []  # both sorted, the most urgent last
        self._others: list[_Place] = []
        self._contents: dict[object, tuple[str, ...]] = {}  # paths; sets would take four times the memory
        self._appeared: OrderedDict[str, float] = OrderedDict()
        self._lifetimes: deque[float] = deque(maxlen=8)

    def __len__(self) -> int:
        return len(self._ready)

    def __contains__(self, path: str) -> bool:
        return path in self._ready

    def appeared(self, path: str, now: float) -> None:
        """A file was seen for the first time."""
        if path not in self._appeared:
            self._appeared[path] = now
            if len(self._appeared) > REMEMBERED:
                self._appeared.popitem(last=False)

    def first_seen(self, path: str) -> float:
        """When a file was seen for the first time; 0 when it was there before the watcher."""
        return self._appeared.get(path, 0.0)

    def vanished(self, path: str, now: float, *, rolling: bool) -> None:
        """A file was removed: so long do files live in this run."""
        appeared = self._appeared.pop(path, None)
        if appeared is not None and not rolling:
            self._lifetimes.append(now - appeared)

    def add(self, candidate: Candidate) -> None:
        """A checkpoint is ready; it replaces an older version of itself."""
        self.remove(candidate.path)
        self._ready[candidate.path] = candidate
        bisect.insort(*self._place(candidate))
        for content in candidate.contents:
            self._contents[content] = (*self._contents.get(content, ()), candidate.path)

    def remove(self, path: str) -> bool:
        """Take one out; False when it is not there."""
        candidate = self._ready.pop(path, None)
        if candidate is None:
            return False
        line, place = self._place(candidate)
        del line[bisect.bisect_left(line, place)]
        for content in candidate.contents:
            left = tuple(other for other in self._contents.pop(content) if other != path)
            if left:
                self._contents[content] = left
        return True

    def twins(self, candidate: Candidate) -> list[Candidate]:
        """Those with certainly the same content: hard links, and copies with true checksums."""
        paths = {path for content in candidate.contents for path in self._contents.get(content, ())}
        return [self._ready[path] for path in sorted(paths)]

    def take(self, now: float) -> Candidate | None:
        """The next one. Of several names for one content, the one that will stay."""
        for first in self.in_order(now):
            chosen = min(self.twins(first), key=lambda candidate: (candidate.rolling, candidate.path))
            self.remove(chosen.path)
            return chosen
        return None

    def in_order(self, now: float) -> Iterator[Candidate]:
        """All of them, the next one first."""
        others, start, end = self._others, 0, 0
        if self._lifetimes:  # files that have lived for more than half as long as others did before them
            start = bisect.bisect_right(others, 0.0, key=_appeared)
            end = max(start, bisect.bisect_left(others, now - min(self._lifetimes) / 2, key=_appeared))
        going = (others[k] for k in reversed(range(start, end)))
        rest = itertools.chain(reversed(range(end, len(others))), reversed(range(start)))
        staying = (others[k] for k in rest)  # one by one: mostly only the first is asked for
        urgent = heapq.merge(reversed(self._rolling), going, reverse=True)
        return (self._ready[place[-1]] for place in itertools.chain(urgent, staying))

    def _place(self, candidate: Candidate) -> tuple[list[_Place], _Place]:
        """The list a candidate stands in, and where it sorts there."""
        if self._once:
            return self._others, _training_order(candidate)
        line = self._rolling if candidate.rolling else self._others
        return line, (candidate.appeared, candidate.done, candidate.stamp.mtime_ns, candidate.path)


def in_training_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """As a queue hands them out when nobody writes any more."""
    return sorted(candidates, key=_training_order, reverse=True)


def _training_order(candidate: Candidate) -> _Place:
    done = candidate.done if math.isfinite(candidate.done) else math.inf
    return (-done, -candidate.stamp.mtime_ns, candidate.path)


class Filter:
    """What the options `every`, `since` and `min_interval` pass over.

    Args:
        options: what is asked for.
        from_name: what a path says about progress.
        now: seconds since 1970, for time spans.
    """

    def __init__(self, options: WatchOptions, from_name: Callable[[str], NameFacts], now: float):
        self._options, self._from_name = options, from_name
        self._since = since_rule(options.since, now) if options.since is not None else None
        self._times: list[float] = []  # sorted
        self.refused: dict[str, str] = {}

    def refuses(self, path: str, stamp: Stamp) -> str:
        """The option that passes a file over, in words; empty when it is to be evaluated."""
        option = self._option(path, stamp.mtime_ns / 1e9)
        if option:
            self.refused[path] = option
        else:
            self.refused.pop(path, None)
        return option

    def forget(self, path: str) -> None:
        """The file is gone."""
        self.refused.pop(path, None)

    def _option(self, path: str, mtime: float) -> str:
        options, facts = self._options, self._from_name(path)
        done = count_done(facts)
        if options.every is not None and done is not None and done % options.every:
            return f"--every {options.every}"
        if self._since is not None and not self._since(facts, mtime):
            return f"--since {options.since}"
        interval = options.min_interval
        if interval is None:
            return ""
        before, behind = bisect.bisect_left(self._times, mtime), bisect.bisect_right(self._times, mtime)
        near = (*self._times[before - 1 : before], *self._times[behind : behind + 1])
        if any(abs(mtime - other) < interval for other in near):
            return f"--min-interval {interval:g}"
        if before == behind:
            self._times.insert(before, mtime)
        return ""


def count_done(facts: NameFacts) -> float | None:
    """Epochs done by a name, else steps done, else another count, else None."""
    if facts.epoch_done is not None:
        return facts.epoch_done
    count = facts.number if facts.step_done is None else facts.step_done
    return None if count is None else float(count)
