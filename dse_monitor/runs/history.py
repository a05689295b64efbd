"""A run's evaluations in little memory: columns of numbers, read as a sequence of Evaluation.

Ten thousand Evaluation objects take some 30 MB, these columns 3 MB; a watcher runs for weeks. Stage times,
companion metrics and the name of the map file are left out: they are in the ledger.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from dse_monitor.metric.components import Components
from dse_monitor.runs.growing import content_number
from dse_monitor.runs.order import NO_CONTENT, Order, Places, order
from dse_monitor.runs.record import Evaluation, Settings, Source
from dse_monitor.runs.series import Series, is_within_epoch, notes_of

_STATUSES = ("scored", "failed", "invalid")
_COMPONENTS = tuple(f.name for f in dataclasses.fields(Components))
_COUNTS = ("images", "tokens", "width")  # of the components, these are whole numbers
_WORDS = ("epoch_source", "step_source", "layout", "encoder", "arch")  # few different values in a run
_NUMBERS = ("size", "mtime", "epoch", "step", "wall_time", *_COMPONENTS)


class History(Sequence[Evaluation]):
    """Grows only at its end; ``seq`` must grow."""

    def __init__(self) -> None:
        self._numbers = {name: array("d") for name in _NUMBERS}
        self._counts: dict[object, int] = dict.fromkeys(_STATUSES, 0)
        self._seq = array("q")
        self._status = array("b")
        self._settings = array("h")
        self._words = array("i")
        self._left = array("b")
        self._names = array("q")  # a number for each path
        self._weights = array("q")  # and for each content
        self._within = array("b")  # see order.Places
        self._seen: set[bytes] = set()  # contents
        self._repeated: set[int] = set()  # those met more than once
        self._line_now: Series | None = None
        self._paths: list[str] = []
        self._content: list[bytes] = []  # hexadecimal digits take twice the memory of what they say
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
        numbers = [source.size, source.mtime, source.epoch, source.step, evaluation.wall_time]
        numbers += [getattr(parts, name) if parts else math.nan for name in _COMPONENTS]
        for column, number in zip(self._numbers.values(), numbers, strict=True):
            column.append(math.nan if number is None else float(number))
        self._counts[evaluation.status] += 1
        self._seq.append(evaluation.seq)
        self._status.append(_STATUSES.index(evaluation.status))
        self._settings.append(
            _place(self._known_settings, evaluation.settings) if evaluation.settings else -1
        )
        self._words.append(_place(self._known_words, tuple(getattr(source, name) for name in _WORDS)))
        self._left.append(True)
        self._line_now = None
        self._paths.append(source.path)
        self._content.append(_packed(source.content))
        self._names.append(hash(source.path))
        self._weights.append(content_number(source.content))
        self._within.append(is_within_epoch(source))
        if self._content[-1] in self._seen and source.content:
            self._repeated.add(self._weights[-1])
        self._seen.add(self._content[-1])
        if evaluation.reason or evaluation.error:
            self._reasons[row] = (evaluation.reason, evaluation.error)
        if source.aliases:
            self._aliases[row] = source.aliases

    def alias(self, seq: int, path: str) -> None:
        """Add a name to the evaluation with this sequence number."""
        row = self.row(seq)
        if path != self._paths[row] and path not in self._aliases.get(row, ()):
            self._aliases[row] = (*self._aliases.get(row, ()), path)

    def set_left(self, seq: int, left: bool) -> None:
        """Note whether a file of the evaluation with this sequence number may still be there."""
        self._left[self.row(seq)] = left

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
        return self._counts[value] if value in self._counts else 0

    def settings(self) -> list[Settings]:
        """Every settings in use, in the order of their first evaluation."""
        return list(self._known_settings)

    def wall_times(self) -> NDArray[np.float64]:
        """When each evaluation was made, seconds since 1970 [n]."""
        return self._column("wall_time", np.arange(len(self)))

    def series(self, lam: float | None = None) -> Series:
        """What Series.from_evaluations says of these, a hundred times as fast."""
        if lam is not None:
            return self._series(np.arange(len(self)), lam)
        if self._line_now is None:  # several ask for it at each checkpoint
            self._line_now = self._series(np.arange(len(self)), None)
        return self._line_now

    def comparable(self) -> Selection:
        """Those measured under the settings of the newest, in the order they were measured in."""
        return Selection(self, self._comparable(np.arange(len(self)))[0])

    def read(self) -> Selection:
        """Those that could be read, scored or invalid, under whatever settings, in training order."""
        rows = np.flatnonzero(np.frombuffer(self._status, np.int8) != _STATUSES.index("failed"))
        return Selection(self, rows[order(self._places(rows)).rows])

    def is_repeated(self, evaluation: Evaluation) -> bool:
        """Whether another evaluation under the same settings holds the same weights."""
        number = content_number(evaluation.source.content)
        if number not in self._repeated:
            return False
        same = np.array(self._weights) == number
        place = self._settings[self.row(evaluation.seq)]
        return int((same & (np.array(self._settings) == place)).sum()) > 1

    def select(self, evaluations: Iterable[Evaluation]) -> Selection:
        """Some of these evaluations, known by their sequence numbers."""
        return Selection(self, (self.row(e.seq) for e in evaluations))

    def _series(self, rows: NDArray[np.int64], lam: float | None) -> Series:
        rows, others, not_finite = self._comparable(rows)
        found = order(self._places(rows))
        notes = notes_of(found, lambda k: self._get(int(rows[k])), others=others, not_finite=not_finite)
        line = rows[found.rows]
        columns = self._terms(line)
        return Series.from_columns(
            Selection(self, line), found.axis, found.x, found.untrained, columns, lam, notes
        )

    def _comparable(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], int, int]:
        """Of these rows the measured ones under the settings of the newest of them.

        And how many were measured under other settings, and how many scored with terms that are not finite.
        """
        scored = rows[np.frombuffer(self._status, np.int8)[rows] == _STATUSES.index("scored")]
        separability, m_dim = self._terms(scored)[:2]
        finite = scored[np.isfinite(separability) & np.isfinite(m_dim)]
        settings = np.frombuffer(self._settings, np.int16)[finite]
        found = finite[settings == settings[-1]] if len(finite) else finite
        return found, len(finite) - len(found), len(scored) - len(finite)

    def _places(self, rows: NDArray[np.int64]) -> Places:
        """The places of these rows."""
        weights = np.zeros(len(rows), np.int64)
        assert NO_CONTENT == 0
        if self._repeated:  # weights that are there once merge with none
            weights = np.frombuffer(self._weights, np.int64)[rows]
            repeated = np.sort(np.fromiter(self._repeated, np.int64))  # np.isin would load numpy.ma, 2 MB
            at = np.minimum(np.searchsorted(repeated, weights), len(repeated) - 1)
            weights[repeated[at] != weights] = NO_CONTENT
        epoch = self._column("epoch", rows)
        return Places(
            epoch=np.where(np.isfinite(epoch), epoch, np.nan),
            step=self._column("step", rows),
            time=self._column("mtime", rows),
            path=np.frombuffer(self._names, np.int64)[rows],
            content=weights,
            within=np.frombuffer(self._within, np.int8)[rows] != 0,
        )

    def _terms(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """What series.terms says of these rows."""
        get = {name: self._column(name, rows) for name in _COMPONENTS}
        separability = get["m_inter"] - (get["m_intra_image"] + get["m_intra_batch"]) / 2
        errors = (get["separability_se"] ** 2, get["m_dim_se"] ** 2, get["separability_dim_cov"])
        return np.array([separability, get["m_dim"], *errors])

    def _column(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        # A copy: an array that somebody looks into cannot grow.
        return np.frombuffer(self._numbers[name], np.float64)[rows]

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
        size, mtime, epoch, step, wall_time, *numbers = [column[row] for column in self._numbers.values()]
        status = _STATUSES[self._status[row]]
        reason, error = self._reasons.get(row, ("", ""))
        return Evaluation(
            status=status,
            source=Source(
                path=self._paths[row],
                aliases=self._aliases.get(row, ()),
                content=_unpacked(self._content[row]),
                size=int(size),
                mtime=mtime,
                epoch=None if math.isnan(epoch) else epoch,
                step=None if math.isnan(step) else int(step),
                **dict(zip(_WORDS, self._known_words[self._words[row]], strict=True)),
            ),
            settings=self._known_settings[self._settings[row]] if self._settings[row] >= 0 else None,
            components=_components(numbers) if status == "scored" else None,
            reason=reason,
            error=error,
            wall_time=wall_time,
            seq=self._seq[row],
        )


class Selection(Sequence[Evaluation]):
    """Some rows of a history, in an order of their own; made into Evaluation when they are asked for."""

    def __init__(self, history: History, rows: Iterable[int]):
        self._history = history
        if isinstance(rows, np.ndarray):  # a hundred times as fast as number by number
            self._rows = array("q", np.ascontiguousarray(rows, np.int64).tobytes())
        else:
            self._rows = array("q", rows)

    def append(self, evaluation: Evaluation) -> None:
        """Add an evaluation that the history holds, known by its sequence number."""
        self._rows.append(self._history.row(evaluation.seq))

    @property
    def last_seq(self) -> int:
        """The largest sequence number; 0 when there is none."""
        return self._history._seq[max(self._rows)] if self._rows else 0

    def series(self, lam: float | None = None) -> Series:
        """What Series.from_evaluations says of these."""
        return self._history._series(np.sort(np.array(self._rows)), lam)

    def find(self, seq: int) -> int | None:
        """Index of the evaluation with this sequence number; None if it is not among these."""
        with contextlib.suppress(KeyError, ValueError):
            return self._rows.index(self._history.row(seq))
        return None

    def left(self) -> NDArray[np.bool_]:
        """Of which of them a file may still be there [n]."""
        return np.frombuffer(self._history._left, np.int8)[np.array(self._rows)] != 0

    def order(self) -> Order:
        """Their order (see order.py), which holds indices of these; they must come as they were measured."""
        return order(self._history._places(np.array(self._rows, np.int64)))

    def take(self, indices: NDArray[np.int64]) -> Selection:
        """Some of them, in another order."""
        return Selection(self._history, np.array(self._rows, np.int64)[indices])

    def seqs(self) -> NDArray[np.int64]:
        """Their sequence numbers [n]."""
        return np.frombuffer(self._history._seq, np.int64)[np.array(self._rows, np.int64)]

    def same_weights(self, one: int, other: int) -> bool:
        """Whether two of them hold the same weights, as far as is known."""
        contents = [self._history._content[self._rows[index]] for index in (one, other)]
        return _packed("") in contents or contents[0] == contents[1]

    def terms(self) -> NDArray[np.float64]:
        """See series.terms [5, n]."""
        return self._history._terms(np.array(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Evaluation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Evaluation]: ...
    def __getitem__(self, index: int | slice) -> Evaluation | list[Evaluation]:
        if isinstance(index, slice):
            return [self._history[row] for row in self._rows[index]]
        return self._history[self._rows[index]]


def series_of(evaluations: Sequence[Evaluation], lam: float | None = None) -> Series:
    """The series of evaluations however they are kept."""
    if isinstance(evaluations, (History, Selection)):
        return evaluations.series(lam)
    return Series.from_evaluations(evaluations, lam)


def index_of(evaluations: Sequence[Evaluation], seq: int) -> int | None:
    """Index of a sequence number among evaluations however they are kept; None if it is not among them."""
    if isinstance(evaluations, Selection):
        return evaluations.find(seq)
    return next((k for k, evaluation in enumerate(evaluations) if evaluation.seq == seq), None)


def _components(numbers: list[float]) -> Components:
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


def _packed(content: str) -> bytes:
    """A digest in half its memory; what is none, as it is."""
    digest = b""
    with contextlib.suppress(ValueError):
        digest = bytes.fromhex(content)
    return b"\0" + digest if digest.hex() == content else content.encode("utf-8", "surrogatepass")


def _unpacked(packed: bytes) -> str:
    return packed[1:].hex() if packed[:1] == b"\0" else packed.decode("utf-8", "surrogatepass")
