"""Which versions of which files have been dealt with; kept small, as a run may have tens of thousands."""

from __future__ import annotations

from dataclasses import dataclass

from dse_monitor.record import Evaluation
from dse_monitor.watch.identity import Stamp


@dataclass(frozen=True, slots=True)
class _Seen:
    seq: int
    ctime_ns: int
    links: int
    path: int  # hash


class Versions:
    """Answers which evaluation a file belongs to, by stamp, by a zip's directory and by content."""

    def __init__(self) -> None:
        self._stamps: dict[int, _Seen] = {}
        self._keys: dict[int, int] = {}
        self._contents: dict[int, list[int]] = {}
        self._crashes: dict[int, int] = {}

    def add(self, path: str, stamp: Stamp, seq: int, content_key: str | None = None) -> None:
        """This version of a file belongs to the evaluation ``seq``."""
        known = self._stamps.get(_bytes(stamp))
        owner = hash(path) if known is None or known.seq != seq else known.path
        self._stamps[_bytes(stamp)] = _Seen(seq, stamp.ctime_ns, stamp.links, owner)
        if content_key:
            self._keys[hash(content_key)] = seq

    def add_content(self, evaluation: Evaluation) -> None:
        """The encoder's content belongs to this evaluation."""
        if evaluation.source.content:
            self._contents.setdefault(_content(evaluation), []).append(evaluation.seq)

    def find(self, path: str, stamp: Stamp) -> int | None:
        """The evaluation this version of a file belongs to, as far as the stamp can tell.

        Another name with the same inode, size and time is a hard link or a renamed file. The same name with
        another change time only may have been rewritten and had its time set back: the stamp cannot tell.
        """
        seen = self._stamps.get(_bytes(stamp))
        if seen is None:
            return None
        if stamp.ctime_ns == seen.ctime_ns or stamp.links != seen.links or hash(path) != seen.path:
            return seen.seq
        return None

    def find_key(self, content_key: str | None) -> int | None:
        """The evaluation a file with this key (identity.content_key) belongs to."""
        return self._keys.get(hash(content_key)) if content_key else None

    def find_content(self, evaluation: Evaluation) -> list[int]:
        """Evaluations of the same encoder under the same settings."""
        return self._contents.get(_content(evaluation), []) if evaluation.source.content else []

    def crashed(self, stamp: Stamp, content_key: str | None) -> int:
        """Note that the worker died on this content; returns how often it did."""
        key = hash(content_key) if content_key else _bytes(stamp)
        self._crashes[key] = self._crashes.get(key, 0) + 1
        return self._crashes[key]


def _bytes(stamp: Stamp) -> int:
    return hash((stamp.inode, stamp.size, stamp.mtime_ns))


def _content(evaluation: Evaluation) -> int:
    return hash((evaluation.source.content, evaluation.settings.fingerprint if evaluation.settings else ""))
