"""A run's evaluations in little memory: columns of numbers, read as a sequence of Evaluation.

Ten thousand Evaluation objects take some 30 MB, these columns 4 MB; a watcher runs for weeks. Stage times,
companion metrics and the name of the map file are left out: they are in the ledger.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from dse_monitor.metric.components import Components
from dse_monitor.record import Evaluation, Settings, Source

_STATUSES = ("scored", "failed", "invalid")
_COMPONENTS = tuple(f.name for f in dataclasses.fields(Components))
_COUNTS = ("images", "tokens", "width")  # of the components, these are whole numbers
_WORDS = ("epoch_source", "step_source", "layout", "encoder", "arch")  # few different values in a run
_WIDTH = 5 + len(_COMPONENTS)


class History(Sequence[Evaluation]):
    """Grows only at its end; ``seq`` must grow."""

    def __init__(self) -> None:
        self._numbers = array("d")
        self._seq = array("q")
        self._status = array("b")
        self._settings = array("h")
        self._words = array("i")
        self._paths: list[str] = []
        self._content: list[str] = []
        self._known_settings: list[Settings] = []
        self._known_words: list[tuple[str, ...]] = []
        self._reasons: dict[int, tuple[str, str]] = {}
        self._aliases: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._seq)

    @property
    def last_seq(self) -> int:
        """Sequence number of the newest evaluation; 0 when there is none."""
        return self._seq[-1] if self._seq else 0

    def append(self, evaluation: Evaluation) -> None:
        """Add an evaluation.

        Raises:
            ValueError: its sequence number does not grow.
        """
        if evaluation.seq <= self.last_seq:
            raise ValueError(f"sequence number {evaluation.seq} after {self.last_seq}")
        source, parts, row = evaluation.source, evaluation.components, len(self)
        numbers = [
            source.size,
            source.mtime,
            _number(source.epoch),
            _number(source.step),
            evaluation.wall_time,
        ]
        numbers += [float(getattr(parts, name)) if parts else math.nan for name in _COMPONENTS]
        self._numbers.extend(numbers)
        self._seq.append(evaluation.seq)
        self._status.append(_STATUSES.index(evaluation.status))
        self._settings.append(
            _place(self._known_settings, evaluation.settings) if evaluation.settings else -1
        )
        self._words.append(_place(self._known_words, tuple(getattr(source, name) for name in _WORDS)))
        self._paths.append(source.path)
        self._content.append(source.content)
        if evaluation.reason or evaluation.error:
            self._reasons[row] = (evaluation.reason, evaluation.error)
        if source.aliases:
            self._aliases[row] = source.aliases

    def alias(self, seq: int, path: str) -> None:
        """Add a name to the evaluation with this sequence number."""
        row = self.row(seq)
        if path != self._paths[row] and path not in self._aliases.get(row, ()):
            self._aliases[row] = (*self._aliases.get(row, ()), path)

    def row(self, seq: int) -> int:
        """Position of a sequence number.

        Raises:
            KeyError: there is no such evaluation.
        """
        row = bisect.bisect_left(self._seq, seq)
        if row == len(self._seq) or self._seq[row] != seq:
            raise KeyError(seq)
        return row

    def status(self, seq: int) -> str:
        """Status of the evaluation with this sequence number."""
        return _STATUSES[self._status[self.row(seq)]]

    def count(self, value: object) -> int:
        """How many evaluations have this status."""
        return self._status.count(_STATUSES.index(value)) if value in _STATUSES else 0

    def __iter__(self) -> Iterator[Evaluation]:
        return map(self._get, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Evaluation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Evaluation]: ...
    def __getitem__(self, index: int | slice) -> Evaluation | list[Evaluation]:
        chosen = range(len(self))[index]
        return self._get(chosen) if isinstance(chosen, int) else [self._get(row) for row in chosen]

    def _get(self, row: int) -> Evaluation:
        numbers = self._numbers[row * _WIDTH : (row + 1) * _WIDTH]
        size, mtime, epoch, step, wall_time = numbers[:5]
        status = _STATUSES[self._status[row]]
        reason, error = self._reasons.get(row, ("", ""))
        return Evaluation(
            status=status,
            source=Source(
                path=self._paths[row],
                aliases=self._aliases.get(row, ()),
                content=self._content[row],
                size=int(size),
                mtime=mtime,
                epoch=None if math.isnan(epoch) else epoch,
                step=None if math.isnan(step) else int(step),
                **dict(zip(_WORDS, self._known_words[self._words[row]], strict=True)),
            ),
            settings=self._known_settings[self._settings[row]] if self._settings[row] >= 0 else None,
            components=_components(numbers[5:]) if status == "scored" else None,
            reason=reason,
            error=error,
            wall_time=wall_time,
            seq=self._seq[row],
        )


def _components(numbers: array[float]) -> Components:
    values = dict(zip(_COMPONENTS, numbers, strict=True))
    counts = {name: int(values.pop(name)) for name in _COUNTS}
    return Components(**values, **counts)  # pyright: ignore[reportArgumentType]


def _place(known: list, value: object) -> int:
    """Index of a value in a short list, added if new; the newest values are the likely ones."""
    for index in range(len(known) - 1, -1, -1):
        if known[index] == value:
            return index
    known.append(value)
    return len(known) - 1


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
