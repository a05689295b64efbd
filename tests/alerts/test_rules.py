import math

import numpy as np
import pytest

from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.rules import errors, judge, noise, shares

pytestmark = pytest.mark.fast

RULES = Rules()


def judged(dse, se=math.nan, x=None, rules=RULES):
    dse = np.asarray(dse, float)
    x = np.arange(1.0, len(dse) + 1) if x is None else np.asarray(x, float)
    return judge(x, dse, np.full(len(dse), se), rules)


def test_noise_of_white_noise_is_found_again():
    rng = np.random.default_rng(0)
    found = noise(np.arange(2000.0), 3.0 * rng.normal(size=2000))
    assert found == pytest.approx(3.0, rel=0.12)  # sampling error of 2,000 points and the allowance for few


def test_noise_ignores_trends_bends_and_single_outliers():
    x = np.arange(100.0)
    line = 0.3 * x
    line[40:] -= 20
    line[70] += 50
    assert noise(x, line) < 1e-9


def test_noise_allows_for_uneven_spacing():
    x = np.cumsum(np.tile([1.0, 7.0, 2.0], 20))
    assert noise(x, 5.0 * x) < 1e-9


def test_too_few_checkpoints_say_nothing_about_noise():
    assert noise(np.arange(4.0), np.zeros(4)) == math.inf


def test_errors_are_the_given_ones_unless_the_series_is_noisier():
    x, rng = np.arange(200.0), np.random.default_rng(0)
    quiet, loud = 0.01 * rng.normal(size=200), 1.0 * rng.normal(size=200)
    np.testing.assert_array_equal(errors(x, quiet, np.full(200, 0.02)), 0.02)
    assert errors(x, loud, np.full(200, 0.02)).min() > 0.8


def test_a_missing_error_is_taken_from_the_others():
    given = np.full(50, 0.5)
    given[7] = math.nan
    assert errors(np.arange(50.0), np.zeros(50), given)[7] == 0.5


def test_a_deep_lasting_drop_is_beyond_and_significant():
    found = judged([0, 0.3, 0.6, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 0.7, 0.5, 0.4], se=0.01)
    assert found.beyond
    assert found.significant
    assert not found.recovered
    assert found.drop == pytest.approx(0.6, abs=0.08)  # the best level is shrunk


def test_a_drop_below_the_margin_does_not_matter_however_certain():
    found = judged([0, 0.3, 0.6, 0.8, 0.9, *[1.0] * 8, *[0.9] * 8], se=1e-6)
    assert found.significant
    assert not found.beyond


def test_a_drop_within_the_errors_is_not_believed():
    assert not judged([0, 0.5, 0.8, 1.0, 1.0, 1.0, 0.7, 0.6, 0.6], se=0.5).significant


def test_a_young_run_is_not_judged():
    assert not judged([0.0, 1.0, 0.5, 0.2], se=0.001).beyond


def test_a_run_at_its_best_from_the_start_is_given_time():
    fall = [1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert not judged(fall[:7], se=0.001).beyond
    assert judged(fall[:8], se=0.001).beyond


def test_constant_and_empty_series_are_quiet():
    for dse in ([], [1.0], [0.3] * 40):
        assert not judged(dse).beyond
        assert judged(dse).recovered


def test_scale_and_offset_of_dse_do_not_matter():
    rng = np.random.default_rng(4)
    dse = np.concatenate([np.linspace(0, 1, 10), np.linspace(1, 0.5, 10)]) + 0.01 * rng.normal(size=20)
    one, other = judged(dse, 0.01), judged(1000 * dse - 7, 10.0)
    assert other.z == pytest.approx(one.z)
    assert other.drop == pytest.approx(1000 * one.drop)


def test_the_highest_of_many_noisy_checkpoints_is_no_standard():
    rng = np.random.default_rng(0)
    z = [judged(rng.normal(size=100), 1.0).z for _ in range(200)]
    assert np.mean(z) < 1.5
    assert np.quantile(z, 0.99) < RULES.threshold


def test_shares_sum_to_one_and_name_what_fell():
    assert shares(0.3, 0.1, 1.0) == (
        {"separability": pytest.approx(0.75), "m_dim": pytest.approx(0.25)},
        "separability",
    )
    assert shares(0.1, 0.1, 8.0)[1] == "m_dim"
    assert shares(0.1, 0.1, 1.0)[1] == "both"


def test_a_term_that_rose_has_no_part_in_the_drop():
    assert shares(0.5, -0.2, 1.0) == ({"separability": 1.0, "m_dim": 0.0}, "separability")
    assert shares(-0.5, -0.2, 1.0) == ({}, "")


def test_plateau_needs_many_checkpoints_without_progress():
    rise, flat = np.linspace(0, 1, 20), np.full(20, 1.0)
    assert judged(np.concatenate([rise, flat]), 0.001).plateau
    assert not judged(np.linspace(0, 1, 40), 0.001).plateau
    assert not judged(np.concatenate([rise, flat])[:30], 0.001).plateau


@pytest.mark.parametrize(
    ("name", "value"),
    [("margin", 0.0), ("margin", 1.0), ("threshold", -1.0), ("sustain", 0), ("per_hour", 0), ("plateau", -1)],
)
def test_senseless_rules_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Rules(**{name: value})
