"""Which versions of which files have been dealt with; kept small, as a run may have tens of thousands."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from dse_monitor.runs.identity import Stamp
from dse_monitor.runs.record import Evaluation

FREE = -1


class _Table:
    """Rows of whole numbers, found by their first; a quarter of the memory of a dictionary of tuples.

    Open addressing: a row's place among the slots follows from its first number, or is the next free one
    behind it. Rows are never removed, so those with one first number are met in the order of adding. At most
    half of the slots are taken.
    """

    def __init__(self, columns: int):
        self._columns = [array("q") for _ in range(columns)]
        self._slots = array("i", [FREE]) * 64

    def insert(self, *row: int) -> None:
        """Add a row."""
        number = len(self._columns[0])
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        if 2 * number >= len(self._slots):
            self._slots = array("i", [FREE]) * (2 * len(self._slots))
            for known, first in enumerate(self._columns[0]):
                self._take_slot(first, known)
        else:
            self._take_slot(row[0], number)

    def replace(self, *row: int) -> None:
        """Put a row in place of the first with the same first number, or add it."""
        number = next(self._rows(row[0]), None)
        if number is None:
            self.insert(*row)
            return
        for column, value in zip(self._columns, row, strict=True):
            column[number] = value

    def find(self, first: int) -> list[tuple[int, ...]]:
        """Every row that begins with this number, without it, in the order of adding."""
        return [tuple(column[number] for column in self._columns[1:]) for number in self._rows(first)]

    def _rows(self, first: int) -> Iterator[int]:
        """Numbers of the rows that begin with this number."""
        slots, firsts = self._slots, self._columns[0]
        slot = first % len(slots)
        while (number := slots[slot]) != FREE:
            if firsts[number] == first:
                yield number
            slot = (slot + 1) % len(slots)

    def _take_slot(self, first: int, number: int) -> None:
        slots = self._slots
        slot = first % len(slots)
        while slots[slot] != FREE:
            slot = (slot + 1) % len(slots)
        slots[slot] = number


class Versions:
    """Answers which evaluation a file belongs to, by stamp, by a zip's directory and by content."""

    def __init__(self) -> None:
        # Hashes are whole numbers of 64 bits with sign, whatever a filesystem says its times are.
        self._stamps = _Table(5)  # of inode, size and time; seq; of change time, links and path
        self._keys = _Table(2)  # hash of the content key, seq
        self._contents = _Table(2)  # hash of content and settings, seq
        self._crashes: dict[int, int] = {}

    def add(self, path: str, stamp: Stamp, seq: int, content_key: str | None = None) -> None:
        """This version of a file belongs to the evaluation ``seq``."""
        mark, owner = _bytes(stamp), hash(path)
        for known, _, _, first in self._stamps.find(mark):
            owner = first if known == seq else owner
        self._stamps.replace(mark, seq, hash(stamp.ctime_ns), hash(stamp.links), owner)
        if content_key:
            self._keys.replace(hash(content_key), seq)

    def add_content(self, evaluation: Evaluation) -> None:
        """The encoder's content belongs to this evaluation."""
        if evaluation.source.content:
            self._contents.insert(_content(evaluation), evaluation.seq)

    def find(self, path: str, stamp: Stamp) -> int | None:
        """The evaluation this version of a file belongs to, as far as the stamp can tell.

        Another name with the same inode, size and time is a hard link or a renamed file. The same name with
        another change time only may have been rewritten and had its time set back: the stamp cannot tell.
        """
        for seq, ctime, links, owner in self._stamps.find(_bytes(stamp)):
            if hash(stamp.ctime_ns) == ctime or hash(stamp.links) != links or hash(path) != owner:
                return seq
        return None

    def find_key(self, content_key: str | None) -> int | None:
        """The evaluation a file with this key (identity.content_key) belongs to."""
        found = self._keys.find(hash(content_key)) if content_key else []
        return found[0][0] if found else None

    def find_content(self, evaluation: Evaluation) -> list[int]:
        """Evaluations of the same encoder under the same settings."""
        if not evaluation.source.content:
            return []
        return [seq for (seq,) in self._contents.find(_content(evaluation))]

    def crashed(self, stamp: Stamp, content_key: str | None) -> int:
        """Note that the worker died on this content; returns how often it did."""
        key = hash(content_key) if content_key else _bytes(stamp)
        self._crashes[key] = self._crashes.get(key, 0) + 1
        return self._crashes[key]


def _bytes(stamp: Stamp) -> int:
    return hash((stamp.inode, stamp.size, stamp.mtime_ns))


def _content(evaluation: Evaluation) -> int:
    return hash((evaluation.source.content, evaluation.settings.fingerprint if evaluation.settings else ""))
