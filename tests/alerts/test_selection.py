import json
import math
from pathlib import Path

import numpy as np
import pytest

from dse_monitor.alerts.selection import before_alarm, best_table, probability_better
from dse_monitor.metric.components import Components
from dse_monitor.runs.record import Evaluation, Source
from dse_monitor.runs.series import Series

pytestmark = pytest.mark.fast

CURVES = Path(__file__).parents[1] / "data" / "curves" / "paper_figure.json"


def series_of(dse, se=math.nan, epoch=None):
    epoch = range(1, len(dse) + 1) if epoch is None else epoch
    return Series.from_evaluations(
        Evaluation(
            status="scored",
            source=Source(path=f"c{e}.pth", epoch=float(e)),
            components=Components(
                m_inter=float(v),
                m_intra_image=0.0,
                m_intra_batch=0.0,
                m_dim=0.5,
                separability_se=se,
                m_dim_se=0.0,
                separability_dim_cov=0.0,
            ),
        )
        for e, v in zip(epoch, dse, strict=True)
    )


def test_probability_equals_simulation():
    rng = np.random.default_rng(0)
    first, second = 1.0 + 0.3 * rng.normal(size=200_000), 0.8 + 0.4 * rng.normal(size=200_000)
    assert probability_better(0.2, 0.3, 0.4) == pytest.approx(np.mean(second > first), abs=0.005)


def test_probability_without_errors_is_unknown_and_with_none_is_certain():
    assert math.isnan(probability_better(0.1, math.nan, 0.1))
    assert probability_better(0.1, 0.0, 0.0) == 0.0
    assert probability_better(0.0, 0.0, 0.0) == 0.5


def test_the_table_lists_the_released_candidates_with_their_odds():
    table = best_table(series_of([0, 1, 0, 0, 0.9, 0, 0, 0.5, 0], se=0.1))
    assert [(c.rank, c.at, c.path) for c in table] == [(1, 2, "c2.pth"), (2, 5, "c5.pth"), (3, 8, "c8.pth")]
    assert [c.behind for c in table] == pytest.approx([0, 0.1, 0.5])
    assert math.isnan(table[0].better)
    assert table[1].better == pytest.approx(0.2398, abs=1e-4)  # normal tail at 0.1 / (0.1 * sqrt(2))
    assert table[1].better > table[2].better
    assert len(best_table(series_of([0, 1, 0, 0, 0.9, 0]), top=1)) == 1


def test_an_empty_run_has_an_empty_table():
    assert best_table(series_of([])) == []
    assert before_alarm(series_of([])) == []


def test_before_an_alarm_nothing_later_is_trusted():
    curve = json.loads(CURVES.read_text())["DINO"]
    series = series_of(curve["dse"], epoch=curve["epoch"])
    assert series.best is not None
    assert series.x[series.best] == 800
    assert series.x[before_alarm(series)].tolist() == [30]


def test_without_an_alarm_both_rules_agree():
    series = series_of(json.loads(CURVES.read_text())["MAE"]["dse"])
    assert before_alarm(series) == list(series.candidates)
