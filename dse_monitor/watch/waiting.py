"""Which checkpoint is evaluated next, and which are passed over because the user asked for it."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dse_monitor.checkpoints.names import NameFacts
from dse_monitor.watch.identity import Stamp
from dse_monitor.watch.options import WatchOptions, since_rule

REMEMBERED = 1000  # files whose first sight is remembered, to learn how long files live; ours


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
        found = count_done(self.facts)
        return -math.inf if found is None else found

    def same_content(self, other: Candidate) -> bool:
        """Whether both are certainly one content: a hard link, or a copy with true checksums."""
        if self.content_key is not None and self.content_key == other.content_key:
            return True
        a, b = self.stamp, other.stamp
        return (a.inode, a.size, a.mtime_ns) == (b.inode, b.size, b.mtime_ns)


class Queue:
    """The checkpoints of one run that are ready.

    Newest first, so that the present is known soon and the backlog follows; files about to be rotated away
    before all others. When nobody writes any more (``once``), in training order.

    Args:
        once: whether nobody writes any more.
    """

    def __init__(self, *, once: bool = False):
        self._once = once
        self._ready: dict[str, Candidate] = {}
        self._appeared: OrderedDict[str, float] = OrderedDict()
        self._lifetimes: deque[float] = deque(maxlen=8)

    def __len__(self) -> int:
        return len(self._ready)

    def __contains__(self, path: str) -> bool:
        return path in self._ready

    def __iter__(self) -> Iterator[Candidate]:
        return iter(list(self._ready.values()))

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
        self._ready[candidate.path] = candidate

    def remove(self, path: str) -> bool:
        """Take one out; False when it is not there."""
        return self._ready.pop(path, None) is not None

    def take(self, now: float) -> Candidate | None:
        """The next one. Of several names for one content, the one that will stay."""
        if not self._ready:
            return None
        first = max(self._ready.values(), key=lambda candidate: self._urgency(candidate, now))
        twins = [candidate for candidate in self._ready.values() if candidate.same_content(first)]
        chosen = min(twins, key=lambda candidate: (candidate.rolling, candidate.path))
        return self._ready.pop(chosen.path)

    def in_order(self, now: float) -> list[Candidate]:
        """All of them, the next one first."""
        return sorted(self._ready.values(), key=lambda candidate: self._urgency(candidate, now), reverse=True)

    def _urgency(self, candidate: Candidate, now: float) -> tuple[Any, ...]:
        if self._once:
            return _training_order(candidate)
        return (
            self._about_to_go(candidate, now),
            candidate.appeared,
            candidate.done,
            candidate.stamp.mtime_ns,
            candidate.path,
        )

    def _about_to_go(self, candidate: Candidate, now: float) -> bool:
        """Rolling files, and files that have lived for more than half as long as others did before them."""
        if candidate.rolling:
            return True
        if not self._lifetimes or not candidate.appeared:
            return False
        return now - candidate.appeared > min(self._lifetimes) / 2


def in_training_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """As a queue hands them out when nobody writes any more."""
    return sorted(candidates, key=_training_order, reverse=True)


def _training_order(candidate: Candidate) -> tuple[Any, ...]:
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
        self._times: set[float] = set()
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
        if any(0 < abs(mtime - other) < interval for other in self._times):
            return f"--min-interval {interval:g}"
        self._times.add(mtime)
        return ""


def count_done(facts: NameFacts) -> float | None:
    """Epochs done by a name, else steps done, else None."""
    if facts.epoch_done is not None:
        return facts.epoch_done
    return None if facts.step_done is None else float(facts.step_done)
