"""The adaptive lambda of a run that grows by one checkpoint at a time, whatever order they are measured in.

Nearly every checkpoint is one more that counts, and lambda follows from means and sums of squares in constant
time. One that may replace another, holds weights seen before or may be the untrained network changes which
of them count: then the order is made anew, by the one definition of order.py.
"""

from __future__ import annotations

from array import array

import numpy as np

from dse_monitor.runs.order import NO_CONTENT, Places, order
from dse_monitor.runs.record import Evaluation, Source
from dse_monitor.runs.series import GrowingLambda, is_measured, is_within_epoch


class PlaceColumns:
    """The places of checkpoints as columns that grow at their end."""

    def __init__(self) -> None:
        self._numbers = {name: array("d") for name in ("epoch", "step", "time")}
        self._names = {name: array("q") for name in ("path", "content")}
        self._within = array("b")

    def append(self, source: Source) -> None:
        """Add one."""
        for column, value in zip(
            self._numbers.values(), (source.epoch, source.step, source.mtime), strict=True
        ):
            column.append(np.nan if value is None else value)
        self._names["path"].append(hash(source.path))
        self._names["content"].append(content_number(source.content))
        self._within.append(is_within_epoch(source))

    def places(self) -> Places:
        """All of them."""
        numbers = {name: np.array(column) for name, column in self._numbers.items()}
        names = {name: np.array(column) for name, column in self._names.items()}
        return Places(**numbers, **names, within=np.array(self._within, bool))


class LambdaOfRun:
    """The lambda of what was measured so far, under one settings: that of ``Series``, to rounding.

    Evaluations come in the order they were measured in.
    """

    def __init__(self) -> None:
        self._lambda = GrowingLambda()
        self._places = PlaceColumns()
        self._terms = (array("d"), array("d"))
        self._seen: set[int] = set()  # versions of a name at a place, and weights

    @property
    def value(self) -> float:
        """The lambda."""
        return self._lambda.value

    def add(self, evaluation: Evaluation) -> None:
        """Take in an evaluation; one without a place on the line changes nothing."""
        if not is_measured(evaluation):
            return
        source, parts = evaluation.source, evaluation.components
        assert parts is not None
        terms = parts.separability, parts.m_dim
        self._places.append(source)
        for column, value in zip(self._terms, terms, strict=True):
            column.append(value)
        marks = {hash((source.path, source.epoch, source.step))}
        if source.content:
            marks.add(hash(source.content))
        plain = marks.isdisjoint(self._seen) and source.step != 0 and source.epoch != 0
        self._seen |= marks
        if plain:
            self._lambda.add(*terms)
        else:
            self._count_anew()

    def _count_anew(self) -> None:
        found = order(self._places.places())
        rows = np.sort(found.rows[~found.untrained])
        self._lambda = GrowingLambda.of(*(np.array(column)[rows] for column in self._terms))


def content_number(content: str) -> int:
    """A number for a digest, equal for equal ones, and NO_CONTENT for none."""
    return (hash(content) or 1) if content else NO_CONTENT
