"""A run's evaluations as one line: adaptive lambda, DSE with errors, candidates, best.

Pure functions over numpy and records; no torch. Components are what is stored; DSE is derived here, again
each time a checkpoint arrives, because the adaptive lambda moves as the run grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dse_monitor.runs.record import Evaluation

Floats = NDArray[np.float64]

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """One run in training order, under one settings fingerprint.

    Attributes:
        evaluations: the scored evaluations, sorted by position.
        axis: unit of ``x``: ``epoch`` if all evaluations have one, else ``step``, else ``order``.
        x: positions [n]: epochs done, steps done, or 1, 2, 3, ...
        separability: M_inter - M_intra [n].
        m_dim: M_dim [n].
        dse: separability + lam * m_dim [n].
        dse_se: standard error of ``dse`` over images [n]; ``nan`` where unknown.
        lam: the lambda of ``dse``.
        candidates: indices of up to three candidates, best first (see :func:`candidates`).
        best: index of the best checkpoint; None when nothing is scored.
    """

    evaluations: Sequence[Evaluation]
    axis: str
    x: Floats
    separability: Floats
    m_dim: Floats
    dse: Floats
    dse_se: Floats
    lam: float
    candidates: tuple[int, ...]
    best: int | None

    def __len__(self) -> int:
        return len(self.evaluations)

    @classmethod
    def from_evaluations(cls, evaluations: Iterable[Evaluation], lam: float | None = None) -> Series:
        """Sort what was measured into one line.

        Only scored evaluations with finite components take part, only those under the settings of the newest
        of them, and where two stand at one position, the newer (larger ``seq``; of equal ones the later
        given).

        Args:
            evaluations: in any order, of any status.
            lam: a fixed lambda; None for the adaptive one.
        """
        chosen, axis = in_training_order(evaluations)
        x = np.array([position(e, axis, k) for k, e in enumerate(chosen, 1)], np.float64)
        return cls.from_columns(tuple(chosen), axis, x, terms(chosen), lam)

    @classmethod
    def from_columns(
        cls,
        evaluations: Sequence[Evaluation],
        axis: str,
        x: Floats,
        columns: Floats,
        lam: float | None = None,
    ) -> Series:
        """A line whose order is known already.

        Args:
            evaluations: those measured, in training order.
            axis: unit of ``x``.
            x: positions [n].
            columns: see :func:`terms` [5, n].
            lam: a fixed lambda; None for the adaptive one.
        """
        separability, m_dim = columns[:2]
        lam = adaptive_lambda(separability, m_dim) if lam is None else float(lam)
        dse = separability + lam * m_dim
        found = tuple(candidates(dse))
        return cls(
            evaluations=evaluations,
            axis=axis,
            x=x,
            separability=separability,
            m_dim=m_dim,
            dse=dse,
            dse_se=dse_errors(columns, lam),
            lam=lam,
            candidates=found,
            best=found[0] if found else None,
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


def in_training_order(evaluations: Iterable[Evaluation]) -> tuple[list[Evaluation], str]:
    """The comparable scored evaluations in training order, one per position, and the axis of that order."""
    by_age = sorted(
        (e for e in evaluations if is_measured(e)), key=lambda e: e.seq
    )  # stable: ties keep their order
    if not by_age:
        return [], "epoch"
    settings = by_age[-1].settings
    by_age = [e for e in by_age if e.settings is settings or e.settings == settings]
    axis = axis_of(by_age)
    if axis == "order":
        return by_age, axis
    newest = {position(e, axis): e for e in by_age}  # a later one replaces an earlier one
    return [newest[x] for x in sorted(newest)], axis


def axis_of(evaluations: Sequence[Evaluation]) -> str:
    """``epoch`` when all have one, else ``step`` when all have one, else ``order``."""
    if all(e.source.epoch is not None and math.isfinite(e.source.epoch) for e in evaluations):
        return "epoch"
    return "step" if all(e.source.step is not None for e in evaluations) else "order"


def position(evaluation: Evaluation, axis: str, order: int = 0) -> float:
    """Where a checkpoint stands on an axis: epochs done, steps done, or the given ``order``."""
    done = {"epoch": evaluation.source.epoch, "step": evaluation.source.step, "order": order}[axis]
    if done is None:
        raise ValueError(f"{evaluation.source.path} has no {axis}")
    return float(done)


def is_measured(evaluation: Evaluation) -> bool:
    """Whether an evaluation has a place on a line: scored, with finite terms."""
    if evaluation.status != "scored" or evaluation.components is None:
        return False
    return math.isfinite(evaluation.components.separability) and math.isfinite(evaluation.components.m_dim)


def _spread(values: Floats) -> float:
    spread = float(np.std(values))
    return spread if spread > _ROUNDING * float(np.max(np.abs(values))) else 0.0
