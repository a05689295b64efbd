"""Long runs are judged in constant time for each checkpoint, and as they would be on all of their numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse_monitor.alerts import rules, trace
from dse_monitor.alerts.condensed import Condensed
from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.trace import Trace

pytestmark = pytest.mark.fast

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 3))]


@given(st.integers(0, 700), st.integers(1, 20), st.integers(1, 10).map(lambda k: 2 * k))
def test_the_newest_stay_and_older_ones_are_means_of_equal_blocks(count, newest, blocks):
    columns = np.random.default_rng(count).normal(size=(3, count))
    kept = Condensed(3, newest, blocks)
    for column in columns.T:
        kept.append(column)
    lengths, block = kept.lengths.astype(int), kept.block
    whole = int((lengths > 1).sum()) if block > 1 else 0
    assert kept.count == count == lengths.sum()
    assert np.all(lengths[:whole] == block)
    assert np.all(lengths[whole:] == 1)
    assert whole < blocks
    assert min(count, newest) <= len(lengths) - whole < newest + (blocks if block == 1 else block)
    ends = lengths.cumsum()
    means = [columns[:, end - length : end].mean(1) for end, length in zip(ends, lengths, strict=True)]
    np.testing.assert_allclose(kept.table, np.array(means).reshape(-1, 3).T, atol=1e-12)


def test_a_run_of_usual_length_is_kept_as_it_is():
    columns = np.random.default_rng(0).normal(size=(6, 2040))
    kept = Condensed(6)
    for column in columns.T:
        kept.append(column)
    assert kept.block == 1
    np.testing.assert_array_equal(kept.table, columns)


def _story(run, newest, monkeypatch, blocks=1024):
    """(index, state) wherever the state of a run changes, and how many columns were looked at at most."""
    looked_at, judge = [], trace.judge

    def count(x, *others):
        looked_at.append(len(x))
        return judge(x, *others)

    with monkeypatch.context() as patch:
        patch.setattr(trace, "judge", count)
        patch.setattr(Trace, "_nothing", lambda self: Condensed(6, newest, blocks))
        judged = Trace(Rules())
        judged.update(run)
    states = [phase.status for phase in judged.phases]
    return [
        (k, s) for k, s in enumerate(states) if k and s != states[k - 1] and s in ("firing", "resolved")
    ], max(looked_at)


@pytest.mark.parametrize("errors", [0.01, float("nan")])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_condensed_run_is_judged_as_the_whole_one(seed, errors, run_of, monkeypatch):
    """Rise, long noisy plateau, fall, recovery, in 900 checkpoints of which 64 and 63 blocks are kept."""
    shape = np.concatenate(
        [
            1 - np.exp(-np.arange(600) / 80),
            np.linspace(1, 0.4, 100),
            np.full(60, 0.4),
            np.linspace(0.4, 1, 60),
            np.ones(80),
        ]
    )
    run = run_of(shape + np.random.default_rng(seed).normal(0, 0.01, len(shape)), se=errors)
    whole, most = _story(run, 2000, monkeypatch)
    condensed, bounded = _story(run, 64, monkeypatch, blocks=64)
    assert most == 900
    assert bounded < 64 + 64 + 16
    assert [status for _, status in whole] == [status for _, status in condensed] == ["firing", "resolved"]
    assert np.abs(np.array([k for k, _ in whole]) - [k for k, _ in condensed]).max() <= 6  # of a fall of 100


def test_noise_of_single_checkpoints_is_that_of_single_checkpoints(monkeypatch):
    rng = np.random.default_rng(0)
    x, dse = np.arange(600.0), rng.normal(0, 0.1, 600)
    lengths = np.concatenate([np.full(300, 16.0), np.ones(300)])
    dse[:300] /= 4  # means of sixteen
    found = rules.errors(x, dse, np.full(600, np.nan), lengths)
    assert found == pytest.approx(np.full(600, 0.1), rel=0.25)  # of one checkpoint, everywhere


def test_an_untrained_network_is_left_out_of_a_condensed_run(run_of, monkeypatch):
    flat = np.random.default_rng(0).normal(1.0, 0.01, 400)
    started = run_of(np.concatenate([[50.0], flat]), se=0.01, first=0)
    without = run_of(flat, se=0.01)
    assert _story(started, 64, monkeypatch, 64)[0] == _story(without, 64, monkeypatch, 64)[0] == []
