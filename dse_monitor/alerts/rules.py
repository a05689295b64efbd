"""What counts as dense degradation: pure functions over a run's DSE in training order.

A run is judged again at each checkpoint with what was known then. Two questions have to be answered with yes:

* Is the drop real? Recent checkpoints are compared with the best stretch before them, over several stretch
  lengths at once. The best of many noisy stretches looks better than it is; that excess is taken off first.
* Does it matter? The drop must exceed a share of the run's own range of DSE so far, at each of several
  checkpoints in a row. The scale of DSE differs from run to run, so no absolute number would do.

The noise is the standard error of each checkpoint, or what the series shows itself when that is larger.
`benchmarks/alerts.py` prints what the defaults do on published runs and on simulated ones.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dse_monitor.alerts.parameters import Rules

Floats = NDArray[np.float64]

# checkpoints per stretch searched for the best level; ours, see benchmarks/alerts.py
BASE_LENGTHS = (2, 8, 32)
TAIL_LENGTHS = (4, 6)  # recent checkpoints compared with it, the newest weighing most; ours, likewise
RECENT = 3  # checkpoints that make the recent level, the newest weighing most; ours: quicker to rise again
_KEPT = 0.8  # share of the smallest residuals that the noise is estimated from
_FEW = 1.5  # relative sampling error of the noise of n checkpoints, times sqrt(n - 2); ours, by simulation
_CHANCE = 2.0  # sampling errors by which that noise must exceed given errors to replace them; ours
_SHORT_RUN = 40  # checkpoints up to which the threshold stands as it is; ours, see benchmarks/alerts.py
_ROUNDING = 1e-9  # of the range: differences below it are arithmetic


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How the newest checkpoint of a series compares with the best stretch before it.

    Attributes:
        drop: level of the best stretch less DSE of the newest checkpoint.
        level_drop: level of the best stretch less the recent level (weighted mean of the last checkpoints).
        scale: range of DSE so far.
        z: the drop of the recent level in standard errors, corrected for the search.
        beyond: the newest checkpoint lies beyond the margin, or beyond half of it where the recent level lies
            beyond all of it, and the run is old enough to be judged.
        significant: ``z`` exceeds the :func:`threshold`.
        recovered: the recent level is back within the hysteresis.
        plateau: no progress worth mentioning for ``Rules.plateau`` checkpoints, and no drop either.
    """

    drop: float
    level_drop: float
    scale: float
    z: float
    beyond: bool
    significant: bool
    recovered: bool
    plateau: bool


def noise(x: Floats, dse: Floats) -> float:
    """Standard deviation of single checkpoints around a smooth curve, from the series itself.

    The distance of a checkpoint from the line between its neighbours; the largest fifth of the distances is
    left out (bends and outliers), which the normal distribution allows to correct for. Infinite below five
    checkpoints.

    Args:
        x: positions [n], growing; spacing may be uneven.
        dse: DSE [n].
    """
    n = len(dse)
    if n < 5:
        return math.inf
    share = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    residual = dse[1:-1] - (1 - share) * dse[:-2] - share * dse[2:]
    residual /= np.sqrt(1 + share**2 + (1 - share) ** 2)  # variance of a checkpoint less that interpolation
    count = math.ceil(_KEPT * len(residual))
    kept = np.partition(np.abs(residual), count - 1)[:count]
    part = len(kept) / len(residual)
    widest = NormalDist().inv_cdf((1 + part) / 2) if part < 1 else math.inf
    # of a standard normal variable
    mean_of_kept = math.sqrt(2 / math.pi) * -math.expm1(-(widest**2) / 2) / part
    return float(kept.mean()) / mean_of_kept


def errors(x: Floats, dse: Floats, dse_se: Floats, lengths: Floats | None = None) -> Floats:
    """Standard error of each checkpoint for comparisons within the run [n].

    Errors over images leave out what differs from checkpoint to checkpoint: clustering and training itself.
    So the noise of the series replaces them where it is larger beyond chance. Where no errors are given, it
    stands in for them, raised by its own sampling error.

    Args:
        x: positions [n].
        dse: DSE [n].
        dse_se: its standard errors [n]; ``nan`` where unknown.
        lengths: how many checkpoints each is the mean of [n], those of more than one first: the noise is
            estimated from the others alone. The errors, given and returned, are those of one checkpoint.
    """
    single = slice(None) if lengths is None else lengths == 1
    x, singles = x[single], dse[single]
    seen, uncertain = noise(x, singles), _FEW / math.sqrt(max(len(x) - 2, 1))
    known = np.isfinite(dse_se) & (dse_se >= 0)
    if not known.any():
        return np.full(len(dse), seen * (1 + uncertain))
    given = np.where(known, dse_se, median(dse_se[known]))
    return np.maximum(given, seen / (1 + _CHANCE * uncertain) if math.isfinite(seen) else 0.0)


def judge(x: Floats, dse: Floats, dse_se: Floats, rules: Rules, lengths: Floats | None = None) -> Judgement:
    """Compare the newest checkpoint with everything before it.

    Args:
        x: positions [n], growing.
        dse: DSE [n] at one lambda, finite.
        dse_se: its standard errors [n]; ``nan`` where unknown.
        rules: margins and thresholds.
        lengths: how many checkpoints each is the mean of (condensed.py) [n], the newest of one each; None
            where all are of one. Errors stay those of one checkpoint.
    """
    n = len(dse) if lengths is None else int(lengths.sum())
    scale = float(np.ptp(dse)) if n else 0.0
    quiet = Judgement(
        drop=0.0,
        level_drop=0.0,
        scale=scale,
        z=0.0,
        beyond=False,
        significant=False,
        recovered=True,
        plateau=False,
    )
    if n < max(rules.warmup, BASE_LENGTHS[0] + TAIL_LENGTHS[0]) or not scale > 0:
        return quiet
    sigma = np.maximum(errors(x, dse, dse_se, lengths), _ROUNDING * scale)
    if not np.isfinite(sigma).all():
        return quiet
    variance = sigma**2 if lengths is None else sigma**2 / lengths
    z, best, end = _compare(dse, variance)
    recent = float(_tail_weights(RECENT) @ dse[-RECENT:])
    drop, margin = best - float(dse[-1]), rules.margin * scale
    rise = best - float(dse[: end + 1].min())
    judged = n >= (rules.warmup if rise >= margin else max(rules.warmup, rules.early_best))
    return Judgement(
        drop=drop,
        level_drop=best - recent,
        scale=scale,
        z=z,
        beyond=judged and drop > margin / 2 and max(drop, best - recent) > margin,
        significant=judged and z > threshold(n, rules),
        recovered=best - recent < rules.recovered * margin,
        plateau=best - recent < margin and _on_plateau(dse, median(sigma), rules),
    )


def threshold(n: int, rules: Rules) -> float:
    """Standard errors that a drop must be worth at the n-th checkpoint.

    A long run has more chances of a false alarm. Chance exceeds z about as often as exp(-z^2 / 2), so adding
    2 log(n / 40) to the square makes every doubling of a long run as likely to alarm falsely as the last.
    """
    return math.sqrt(rules.threshold**2 + 2 * math.log(max(n / _SHORT_RUN, 1.0)))


def _compare(dse: Floats, variance: Floats) -> tuple[float, float, int]:
    """Largest standardised drop, level of the best stretch, index of its last checkpoint.

    Of each stretch's mean sqrt(2 log(n / length)) standard errors are taken off: about what the highest of
    n / length means of pure noise exceeds their expectation by.
    """
    n = len(dse)
    total, square = np.concatenate([[0.0], np.cumsum(dse)]), np.concatenate([[0.0], np.cumsum(variance)])
    z, best, end = -math.inf, -math.inf, 0
    for length in BASE_LENGTHS:
        if length > n - TAIL_LENGTHS[0]:
            break
        # [k]: stretch whose last checkpoint is k + length - 1
        mean = (total[length:] - total[:-length]) / length
        mean_variance = (square[length:] - square[:-length]) / length**2
        error = np.sqrt(mean_variance)
        for tail in TAIL_LENGTHS:
            count = n - tail - length + 1  # stretches that end before the tail
            if count < 1:
                break
            shrunk = mean[:count] - math.sqrt(2 * math.log((n - tail) / length)) * error[:count]
            k = int(np.argmax(shrunk))
            weights = _tail_weights(tail)
            recent, recent_variance = weights @ dse[n - tail :], weights**2 @ variance[n - tail :]
            z = max(z, float((shrunk[k] - recent) / math.sqrt(mean_variance[k] + recent_variance)))
            if shrunk[k] > best:
                best, end = float(shrunk[k]), k + length - 1
    return z, best, end


@functools.cache
def _tail_weights(length: int) -> Floats:
    """Growing linearly to the newest checkpoint: the shape of a gradual fall."""
    weights = np.arange(1.0, length + 1)
    return weights / weights.sum()


def median(values: Floats) -> float:
    """What numpy.median says of finite values; that one loads numpy.ma, 2 MB."""
    middle = len(values) // 2
    if len(values) % 2:
        return float(np.partition(values, middle)[middle])
    low, high = np.partition(values, [middle - 1, middle])[middle - 1 : middle + 1]
    return float((low + high) / 2)


def _on_plateau(dse: Floats, sigma: float, rules: Rules) -> bool:
    """Whether the last ``rules.plateau`` checkpoints brought no progress worth a quarter of the margin.

    The two halves of that stretch are compared; their difference must be below it by more than its error, or
    the error itself must be small against the margin.
    """
    length = rules.plateau
    if length < 4 or len(dse) < 2 * length:
        return False
    last, before = dse[-(length // 2) :], dse[-length : -(length // 2)]
    worth = rules.margin / 4 * float(np.ptp(dse))
    error = sigma * math.sqrt(1 / len(last) + 1 / len(before))
    return worth > 0 and float(last.mean() - before.mean()) < worth and error < worth


def shares(separability_drop: float, m_dim_drop: float, lam: float) -> tuple[dict[str, float], str]:
    """Part of a drop of DSE by cause, and the cause in one word.

    A term that rose meanwhile has no part in the drop. A cause is named alone when it holds two thirds.

    Args:
        separability_drop: separability of the best checkpoint less that of the newest.
        m_dim_drop: M_dim of the best less that of the newest.
        lam: weight of M_dim.

    Returns:
        ``{"separability": s, "m_dim": 1 - s}`` and ``separability``, ``m_dim`` or ``both``; empty when
        neither fell.
    """
    fell, shrank = max(separability_drop, 0.0), max(lam * m_dim_drop, 0.0)
    if not math.isfinite(fell + shrank) or fell + shrank <= 0:
        return {}, ""
    part = fell / (fell + shrank)
    cause = "separability" if part >= 2 / 3 else "m_dim" if part <= 1 / 3 else "both"
    return {"separability": part, "m_dim": 1 - part}, cause
