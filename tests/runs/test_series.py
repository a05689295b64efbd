import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse_monitor.metric.components import Components
from dse_monitor.runs.record import Evaluation, Settings, Source
from dse_monitor.runs.series import GrowingLambda, Series, adaptive_lambda, candidates

pytestmark = pytest.mark.fast


def evaluation(
    separability,
    m_dim=0.5,
    *,
    epoch=None,
    step=None,
    seq=0,
    images="a",
    status="scored",
    path="c.pth",
    **errors,
):
    components = Components(m_inter=separability, m_intra_image=0.0, m_intra_batch=0.0, m_dim=m_dim, **errors)
    return Evaluation(
        status=status,
        source=Source(path=path, epoch=epoch, step=step),
        settings=Settings(images=images, num_images=8),
        components=components if status == "scored" else None,
        seq=seq,
    )


def test_lambda_is_the_ratio_of_spreads():
    assert adaptive_lambda([0.0, 2.0, 4.0], [1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert adaptive_lambda([-1.0, 1.0, -1.0, 1.0], [0.2, 0.6, 0.2, 0.6]) == pytest.approx(5.0)


def test_lambda_is_one_until_three_checkpoints_vary():
    assert adaptive_lambda([], []) == 1.0
    assert adaptive_lambda([0.0, 2.0], [1.0, 5.0]) == 1.0
    assert adaptive_lambda([0.0, 2.0, 3.0], [0.1, 0.1, 0.1]) == 1.0
    assert adaptive_lambda([0.0, 2.0, 3.0, math.nan], [0.1, 0.1, math.nan, 0.4]) == 1.0


def test_lambda_ignores_checkpoints_that_are_not_finite():
    assert adaptive_lambda([0.0, math.nan, 2.0, 4.0, 1.0], [1.0, 9.0, 2.0, 3.0, math.inf]) == pytest.approx(
        2.0
    )


def test_lambda_refuses_vectors_of_two_lengths():
    with pytest.raises(ValueError, match="one length"):
        adaptive_lambda([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], []),
        ([3.0], [0]),
        ([1, 2, 3, 4, 5], [4]),
        ([5, 4, 3, 2, 1], [0]),
        ([1, 3, 2, 2.9, 1, 0, 4], [6, 1]),  # 2.9 stands two positions from 3
        ([5, 0, 0, 4, 0, 0, 3, 0, 0, 2], [0, 3, 6]),  # four local maxima, three kept
        ([1, 1, 1, 1], [0, 1, 2]),  # equal scores: by position
        ([0, 2, 1, 0, 0, 2], [1, 5]),
        ([math.nan, 1.0, math.nan], [1]),
        ([math.nan, math.nan], []),
    ],
)
def test_candidates_are_the_three_highest_local_maxima(scores, expected):
    assert candidates(scores) == expected


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), max_size=40))
def test_candidates_equal_the_rule_written_out(scores):
    local = [i for i in range(len(scores)) if scores[i] == max(scores[max(0, i - 2) : i + 3])]
    assert candidates(scores) == sorted(local, key=lambda i: (-scores[i], i))[:3]


def test_series_is_sorted_by_epoch_and_carries_errors():
    run = [
        evaluation(0.3, 0.2, epoch=30, seq=1, separability_se=0.03, m_dim_se=0.04, separability_dim_cov=0.0),
        evaluation(0.1, 0.5, epoch=10, seq=2),
        evaluation(0.2, 0.9, epoch=20, seq=3),
    ]
    series = Series.from_evaluations(run)
    lam = adaptive_lambda([0.1, 0.2, 0.3], [0.5, 0.9, 0.2])
    assert series.axis == "epoch"
    assert series.x.tolist() == [10, 20, 30]
    assert series.lam == lam
    np.testing.assert_allclose(series.dse, [0.1 + lam * 0.5, 0.2 + lam * 0.9, 0.3 + lam * 0.2])
    assert np.isnan(series.dse_se[:2]).all()
    assert series.dse_se[2] == pytest.approx(math.hypot(0.03, lam * 0.04))
    assert series.best == series.candidates[0] == 1


def test_a_fixed_lambda_is_kept():
    series = Series.from_evaluations([evaluation(0.1 * k, 0.3 * k, epoch=k) for k in range(5)], lam=0.25)
    assert series.lam == 0.25
    np.testing.assert_allclose(series.dse, [0.175 * k for k in range(5)])


def test_newest_measurement_of_a_position_wins():
    series = Series.from_evaluations([evaluation(0.9, epoch=10, seq=7), evaluation(0.1, epoch=10, seq=3)])
    assert series.separability.tolist() == [0.9]


def test_only_the_newest_settings_are_compared():
    run = [evaluation(5.0, epoch=10, seq=1, images="old"), evaluation(1.0, epoch=20, seq=2, images="new")]
    assert Series.from_evaluations(run).x.tolist() == [20]


def test_failed_and_non_finite_evaluations_are_left_out():
    run = [
        evaluation(1.0, epoch=10, seq=1),
        evaluation(1.0, epoch=20, seq=2, status="failed"),
        evaluation(1.0, epoch=30, seq=3, status="invalid"),
        evaluation(math.nan, epoch=40, seq=4),
        evaluation(1.0, math.inf, epoch=50, seq=5),
    ]
    assert Series.from_evaluations(run).x.tolist() == [10]


def test_steps_order_a_run_without_all_epochs_and_arrival_one_without_steps():
    steps = [evaluation(1.0, step=300, seq=1), evaluation(2.0, step=100, epoch=1, seq=2)]
    assert (Series.from_evaluations(steps).axis, Series.from_evaluations(steps).x.tolist()) == (
        "step",
        [100, 300],
    )
    neither = [evaluation(1.0, seq=5), evaluation(2.0, step=100, seq=2)]
    series = Series.from_evaluations(neither)
    assert (series.axis, series.x.tolist(), series.separability.tolist()) == ("order", [1, 2], [2.0, 1.0])


def test_an_empty_run_has_no_best():
    series = Series.from_evaluations([evaluation(0.0, epoch=1, status="failed")])
    assert (len(series), series.best, series.candidates, series.lam) == (0, None, (), 1.0)


@given(st.permutations(list(range(8))))
def test_arrival_order_does_not_change_the_series(order):
    run = [evaluation(math.sin(k), math.cos(k), epoch=k % 6, seq=k) for k in range(8)]
    series, shuffled = Series.from_evaluations(run), Series.from_evaluations([run[k] for k in order])
    assert series.evaluations == shuffled.evaluations
    assert series.candidates == shuffled.candidates


@pytest.mark.parametrize("module", ["dse_monitor.runs.series"])
def test_importing_loads_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lambda_of_a_growing_run_is_that_of_all_its_checkpoints():
    rng = np.random.default_rng(0)
    s = 1e6 + rng.normal(size=300)  # a large mean must cost no digits
    d = 0.6 + 0.01 * rng.normal(size=300)
    s[50] = np.nan
    growing = GrowingLambda()
    for n in range(300):
        growing.add(s[n], d[n])
        assert growing.value == pytest.approx(adaptive_lambda(s[: n + 1], d[: n + 1]), rel=1e-9)


@pytest.mark.parametrize("spread", [0.0, 1e-14])
def test_lambda_of_a_growing_run_ignores_rounding(spread):
    growing = GrowingLambda()
    for n in range(50):
        growing.add(float(n), 0.6 + spread * (n % 2))
    assert growing.value == 1.0
