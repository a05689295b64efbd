"""A run's evaluations as one line: adaptive lambda, DSE with errors, candidates, best.

Pure functions over numpy and records; no torch. Components are what is stored; DSE is derived here, again
each time a checkpoint arrives, because the adaptive lambda moves as the run grows. Which evaluations make the
line, in which order and on which axis, is defined in order.py; what does not count is said in
``Series.notes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dse_monitor.checkpoints.names import from_name
from dse_monitor.runs.order import NO_CONTENT, Bools, Floats, Order, Places, in_words, order
from dse_monitor.runs.record import Evaluation, Source

NEIGHBOURS = (
    2  # checkpoints on either side a candidate must not fall below; released code of arXiv 2510.17299
)
CANDIDATES = 3  # how many local maxima are kept; released code
FEWEST_FOR_LAMBDA = 3  # checkpoints below which a ratio of standard deviations says nothing
_ROUNDING = (
    1e-12  # a standard deviation below this share of the values' size is the rounding of equal numbers
)


def adaptive_lambda(separability: ArrayLike, m_dim: ArrayLike) -> float:
    """Weight of M_dim that gives both terms of DSE the same spread over the checkpoints of one run.

    Std(M_inter - M_intra) / Std(M_dim): "adaptive scaling" of arXiv 2510.17299. Checkpoints at which either
    value is not finite are left out.

    Args:
        separability: M_inter - M_intra of each checkpoint.
        m_dim: M_dim of each checkpoint, of the same length.

    Returns:
        The ratio; 1.0 with fewer than three checkpoints or where M_dim does not vary.

    Raises:
        ValueError: the two are not vectors of one length.
    """
    s, d = np.asarray(separability, np.float64), np.asarray(m_dim, np.float64)
    if s.ndim != 1 or s.shape != d.shape:
        raise ValueError(
            f"separability and m_dim must be vectors of one length, found {s.shape} and {d.shape}"
        )
    finite = np.isfinite(s) & np.isfinite(d)
    s, d = s[finite], d[finite]
    if len(s) < FEWEST_FOR_LAMBDA or _spread(d) == 0:
        return 1.0
    return _spread(s) / _spread(d)


class GrowingLambda:
    """:func:`adaptive_lambda` of a run that grows by one checkpoint at a time, in constant time and memory.

    Means and sums of squares are updated as by Welford (Technometrics 4, 1962), which loses no digits to
    large means; the result agrees with the one above to rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self._means = [0.0, 0.0]
        self._squares = [0.0, 0.0]
        self._largest = [0.0, 0.0]

    def add(self, separability: float, m_dim: float) -> None:
        """Take in a checkpoint; one whose values are not finite is left out."""
        if not (math.isfinite(separability) and math.isfinite(m_dim)):
            return
        self.count += 1
        for k, value in enumerate((separability, m_dim)):
            off = value - self._means[k]
            self._means[k] += off / self.count
            self._squares[k] += off * (value - self._means[k])
            self._largest[k] = max(self._largest[k], abs(value))

    @classmethod
    def of(cls, separability: ArrayLike, m_dim: ArrayLike) -> GrowingLambda:
        """One that has taken in these checkpoints [n], all finite."""
        growing = cls()
        columns = np.array([separability, m_dim], np.float64)
        growing.count = columns.shape[1]
        if growing.count:
            growing._means = columns.mean(1).tolist()
            growing._squares = ((columns.T - growing._means) ** 2).sum(0).tolist()
            growing._largest = np.abs(columns).max(1).tolist()
        return growing

    @property
    def value(self) -> float:
        """The lambda of what was taken in so far."""
        if self.count < FEWEST_FOR_LAMBDA:
            return 1.0
        spreads = [math.sqrt(square / self.count) for square in self._squares]
        s, d = (
            spread if spread > _ROUNDING * largest else 0.0
            for spread, largest in zip(spreads, self._largest, strict=True)
        )
        return s / d if d else 1.0


def candidates(scores: ArrayLike) -> list[int]:
    """Indices of the checkpoints worth keeping, best first: the released selection rule of arXiv 2510.17299.

    A checkpoint is a candidate when no neighbour within two positions on either side scores higher (fewer
    neighbours at the ends). Candidates are sorted by falling score, equal scores by position; the first three
    are returned. Scores that are not finite are never candidates and do not count as neighbours.

    Args:
        scores: one score per checkpoint, in training order.
    """
    p = np.asarray(scores, np.float64)
    if p.ndim != 1:
        raise ValueError(f"scores must be a vector, found shape {p.shape}")
    p = np.where(np.isfinite(p), p, -np.inf)
    highest = p.copy()
    for k in range(1, NEIGHBOURS + 1):
        np.maximum(highest[k:], p[:-k], out=highest[k:])
        np.maximum(highest[:-k], p[k:], out=highest[:-k])
    local = np.flatnonzero(np.isfinite(p) & (p == highest))
    scores, found = p[local], []
    for _ in range(min(CANDIDATES, len(local))):  # a long noisy run has thousands of them: no full sort
        place = int(np.argmax(scores))  # the first of equal ones
        found.append(int(local[place]))
        scores[place] = -np.inf
    return found


class Note(NamedTuple):
    """Something about a line that its numbers do not show.

    Attributes:
        kind: ``settings``, ``finite``, ``replaced``, ``merged``, ``untrained``, ``steps``, ``times`` or
            ``fractions``.
        text: what, in one line.
    """

    kind: str
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """One run in training order, under one settings fingerprint.

    Attributes:
        evaluations: the evaluations that count, in training order, the untrained network among them.
        axis: unit of ``x``: ``epoch``, ``step`` or ``order`` (order.py says when).
        x: positions [n], growing: epochs done, steps done, or 1, 2, 3, ...
        untrained: which are the untrained network [n]: drawn, but no part of lambda, candidates and best.
        separability: M_inter - M_intra [n].
        m_dim: M_dim [n].
        dse: separability + lam * m_dim [n].
        dse_se: standard error of ``dse`` over images [n]; ``nan`` where unknown.
        lam: the lambda of ``dse``.
        candidates: indices of up to three candidates, best first (see :func:`candidates`).
        best: index of the best checkpoint; None when nothing is scored.
        notes: what was scored and does not count, and what the order rests on where it is not plain.
        aside: why what was measured under the settings of the line is not on it, ``replaced`` or
            ``merged``, by sequence number; only :meth:`from_evaluations` tells.
    """

    evaluations: Sequence[Evaluation]
    axis: str
    x: Floats
    untrained: Bools
    separability: Floats
    m_dim: Floats
    dse: Floats
    dse_se: Floats
    lam: float
    candidates: tuple[int, ...]
    best: int | None
    notes: tuple[Note, ...] = ()
    aside: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.evaluations)

    @property
    def counted(self) -> int:
        """How many the best is chosen among."""
        return len(self) - int(self.untrained.sum())

    def place(self, index: int) -> str:
        """Where a checkpoint stands, in words: ``epoch 120``, ``step 1,200 (epoch 3)``, ``checkpoint 7``."""
        source = self.evaluations[index].source
        return in_words(self.axis, float(self.x[index]), source.epoch, source.step)

    @classmethod
    def from_evaluations(cls, evaluations: Iterable[Evaluation], lam: float | None = None) -> Series:
        """Put what was measured into one line.

        Only scored evaluations with finite components take part, and only those under the settings of the
        newest of them; order.py says which of these count, and their order. ``notes`` tell of all others.

        Args:
            evaluations: in any order, of any status.
            lam: a fixed lambda; None for the adaptive one.
        """
        every = list(evaluations)
        chosen = comparable(every)
        found = order(places_of(chosen))
        scored = sum(e.status == "scored" for e in every)
        measured = sum(map(is_measured, every))
        notes = notes_of(
            found, chosen.__getitem__, others=measured - len(chosen), not_finite=scored - measured
        )
        line = tuple(chosen[row] for row in found.rows)
        aside = {chosen[row].seq: "replaced" for row, _ in found.replaced}
        aside |= {chosen[row].seq: "merged" for row, _ in found.merged}
        made = cls.from_columns(line, found.axis, found.x, found.untrained, terms(line), lam, notes)
        return replace(made, aside=aside)

    @classmethod
    def from_columns(
        cls,
        evaluations: Sequence[Evaluation],
        axis: str,
        x: Floats,
        untrained: Bools,
        columns: Floats,
        lam: float | None = None,
        notes: tuple[Note, ...] = (),
    ) -> Series:
        """A line whose order is known already.

        Args:
            evaluations: those that count, in training order.
            axis: unit of ``x``.
            x: positions [n].
            untrained: which are the untrained network [n].
            columns: see :func:`terms` [5, n].
            lam: a fixed lambda; None for the adaptive one.
            notes: what there is to say of them.
        """
        separability, m_dim = columns[:2]
        if lam is None:
            some = bool(untrained.any())
            lam = adaptive_lambda(*(columns[:2, ~untrained] if some else columns[:2]))
        lam = float(lam)
        dse = separability + lam * m_dim
        found = tuple(candidates(np.where(untrained, np.nan, dse)))
        return cls(
            evaluations=evaluations,
            axis=axis,
            x=x,
            untrained=untrained,
            separability=separability,
            m_dim=m_dim,
            dse=dse,
            dse_se=dse_errors(columns, lam),
            lam=lam,
            candidates=found,
            best=found[0] if found else None,
            notes=notes,
        )


def terms(evaluations: Iterable[Evaluation]) -> Floats:
    """Separability, M_dim, the variances of their errors and the covariance [5, n] of what was measured."""
    parts = [e.components for e in evaluations if e.components is not None]
    rows = [
        (c.separability, c.m_dim, c.separability_se**2, c.m_dim_se**2, c.separability_dim_cov) for c in parts
    ]
    return np.array(rows, np.float64).reshape(-1, 5).T


def dse_errors(columns: Floats, lam: float) -> Floats:
    """Standard error of DSE at a lambda [n] from :func:`terms`; ``nan`` where unknown."""
    variance, dim_variance, covariance = columns[2:]
    error = variance + lam**2 * dim_variance + 2 * lam * covariance
    return np.sqrt(np.maximum(np.where(np.isfinite(error), error, np.nan), 0))


def comparable(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Those measured under the settings of the newest, in the order they were measured in."""
    by_age = sorted((e for e in evaluations if is_measured(e)), key=lambda e: e.seq)  # ties keep their order
    if not by_age:
        return []
    settings = by_age[-1].settings
    return [e for e in by_age if e.settings is settings or e.settings == settings]


def places_of(evaluations: Sequence[Evaluation]) -> Places:
    """The places of evaluations, which must come in the order they were measured in."""
    sources = [evaluation.source for evaluation in evaluations]
    paths: dict[str, int] = {}
    contents: dict[str, int] = {"": NO_CONTENT}

    def column(values: Iterable[float | None]) -> Floats:
        found = np.array([math.nan if value is None else value for value in values], np.float64)
        return np.where(np.isfinite(found), found, np.nan)

    return Places(
        epoch=column(source.epoch for source in sources),
        step=column(source.step for source in sources),
        time=column(source.mtime for source in sources),
        path=np.array([paths.setdefault(source.path, len(paths)) for source in sources], np.int64),
        content=np.array([contents.setdefault(s.content, len(contents)) for s in sources], np.int64),
        within=np.array([is_within_epoch(source) for source in sources], bool),
    )


def is_within_epoch(source: Source) -> bool:
    """Whether a name tells that a checkpoint was saved in the middle of its first epoch.

    Asked only where nothing else tells it from an untrained network.
    """
    return source.epoch == 0 and source.step is None and from_name(source.path).within_epoch


def notes_of(
    found: Order, get: Callable[[int], Evaluation], *, others: int = 0, not_finite: int = 0
) -> tuple[Note, ...]:
    """What there is to say about an order.

    Args:
        found: the order.
        get: the evaluation of one of its rows.
        others: how many were measured under other settings.
        not_finite: how many were scored with terms that are not finite.
    """
    notes = []

    def say(kind: str, text: str) -> None:
        notes.append(Note(kind, text))

    if others:
        say("settings", f"{_checkpoints(others, 'was', 'were')} measured under other settings: not compared")
    if not_finite:
        say(
            "finite", f"{_checkpoints(not_finite, 'has', 'have')} terms that are not finite: not on the curve"
        )
    if found.replaced:
        (old, new), count = (get(row).source for row in found.replaced[0]), len(found.replaced)
        again = old.content == new.content
        did = "measured again" if again else "rewritten with other weights"
        by_epoch = new.step is None or (found.axis == "epoch" and new.epoch is not None)
        at = in_words("epoch", new.epoch) if by_epoch else in_words("step", new.step, new.epoch)
        first = f"{new.path} was {did} at {at}" if count == 1 else f"{count} checkpoints were rewritten or "
        first += "" if count == 1 else f"measured again at their place (first {new.path}, {at})"
        say("replaced", f"{first}: the newer version counts")
    if found.merged:
        (name, kept), count = (get(row).source.path for row in found.merged[0]), len(found.merged)
        more = "" if count == 1 else f"; so do {count - 1} more names of other checkpoints"
        say("merged", f"{name} holds the same weights as {kept}{more}: counted once")
    if found.untrained.any():
        index = int(np.argmax(found.untrained))
        source = get(int(found.rows[index])).source
        at = "step 0" if source.step == 0 else "epoch 0"
        say(
            "untrained",
            f"{source.path} is the untrained network ({at}): drawn, but no part of lambda, rules and best",
        )
    if found.by_step:
        say("steps", f"{found.by_step} checkpoints share their epoch with another: ordered by step")
    if found.by_time:
        who = _checkpoints(found.by_time, "has its", "have their")
        say("times", f"{who} place by file time: epoch and step do not tell")
    if found.axis == "epoch" and found.steps_per_epoch is not None:
        say("fractions", f"positions are epochs with fractions, at {found.steps_per_epoch:,} steps per epoch")
    return tuple(notes)


def _checkpoints(count: int, one: str, several: str) -> str:
    return f"1 checkpoint {one}" if count == 1 else f"{count:,} checkpoints {several}"


def is_measured(evaluation: Evaluation) -> bool:
    """Whether an evaluation has a place on a line: scored, with finite terms."""
    if evaluation.status != "scored" or evaluation.components is None:
        return False
    return math.isfinite(evaluation.components.separability) and math.isfinite(evaluation.components.m_dim)


def _spread(values: Floats) -> float:
    spread = float(np.std(values))
    return spread if spread > _ROUNDING * float(np.max(np.abs(values))) else 0.0
