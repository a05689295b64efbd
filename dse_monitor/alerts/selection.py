"""Which checkpoint of a run to keep: the released rule, how sure it is, and one rule of our own beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.trace import Trace
from dse_monitor.runs.series import Series, candidates


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One candidate, as a line of a table.

    Attributes:
        rank: 1 for the best.
        at: position on the run's axis.
        path: checkpoint file relative to the run.
        dse: its DSE.
        dse_se: standard error of ``dse``; ``nan`` where unknown.
        behind: DSE of the best less ``dse``.
        separability: M_inter - M_intra.
        m_dim: M_dim.
        better: probability that this candidate is truly better than the best, from the standard errors; 0.5
            for the best itself would say nothing, so it is ``nan`` there, as it is without errors.
    """

    rank: int
    at: float
    path: str
    dse: float
    dse_se: float
    behind: float
    separability: float
    m_dim: float
    better: float


def probability_better(behind: float, first_se: float, second_se: float) -> float:
    """Probability that a checkpoint is truly better than one it lies ``behind`` of.

    The two errors are taken as independent and normal. Checkpoints of one run are measured on the same
    images, so their errors partly cancel in the difference: the choice is at least as sure as this says.

    Args:
        behind: DSE of the chosen checkpoint less that of the other.
        first_se: standard error of the chosen one.
        second_se: standard error of the other.

    Returns:
        In [0, 1]; ``nan`` where an error is unknown.
    """
    error = math.hypot(first_se, second_se)
    if not math.isfinite(error):
        return math.nan
    if error == 0:
        return 0.5 if behind == 0 else float(behind < 0)
    return 0.5 * math.erfc(behind / error / math.sqrt(2))


def best_table(series: Series, top: int = 3) -> list[Choice]:
    """The candidates of the released rule, best first (see :func:`dse_monitor.runs.series.candidates`).

    Args:
        series: the run.
        top: how many at most; the released rule keeps three.
    """
    table = []
    for rank, i in enumerate(series.candidates[:top], 1):
        first = series.candidates[0]
        behind = float(series.dse[first] - series.dse[i])
        table.append(
            Choice(
                rank=rank,
                at=float(series.x[i]),
                path=series.evaluations[i].source.path,
                dse=float(series.dse[i]),
                dse_se=float(series.dse_se[i]),
                behind=behind,
                separability=float(series.separability[i]),
                m_dim=float(series.m_dim[i]),
                better=math.nan
                if i == first
                else probability_better(behind, float(series.dse_se[first]), float(series.dse_se[i])),
            )
        )
    return table


def before_alarm(series: Series, rules: Rules | None = None) -> list[int]:
    """Candidates among what was known when a degradation was first reported; the released ones if none was.

    DSE may rise again long after dense features were lost (DINO and Mugs, late in the published runs), and
    the highest DSE of the whole run then stands at its end. This rule trusts nothing after the first alarm.
    It is ours, offered beside the released rule and never in its place; `benchmarks/alerts.py` compares the
    two.

    Args:
        series: the run.
        rules: the alert rules; None for the defaults.

    Returns:
        Indices into ``series``, best first, at most three.
    """
    trace = Trace(rules or Rules())
    trace.update(series.evaluations)
    firing = (k for k, phase in enumerate(trace.phases) if phase.status == "firing")
    known = next(firing, len(series)) + 1  # a line given again is the same line
    return candidates(np.where(series.untrained, np.nan, series.dse)[:known])
