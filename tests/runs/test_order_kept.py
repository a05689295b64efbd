"""All who keep a run's line agree on it, whatever ties, is missing or comes late."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_places import measured, runs

from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.trace import Trace
from dse_monitor.runs.growing import LambdaOfRun
from dse_monitor.runs.history import History
from dse_monitor.runs.series import Series

usual = settings(deadline=None, max_examples=60)  # the machine may be busy
dear = settings(deadline=None, max_examples=25)
EAGER = Rules(warmup=2, early_best=2)


def kinds(series):
    return [note.kind for note in series.notes]


def kept(evaluations):
    history = History()
    for evaluation in evaluations:
        history.append(evaluation)
    return history


@usual
@given(runs())
def test_the_order_is_total_and_nothing_leaves_in_silence(run):
    series = Series.from_evaluations(run)
    assert np.all(np.diff(series.x) > 0)
    scored = {e.seq for e in run if e.status == "scored"}
    line = {e.seq for e in series.evaluations}
    assert line.isdisjoint(series.aside)
    assert line | set(series.aside) == scored
    for why in ("replaced", "merged"):
        assert (why in kinds(series)) == (why in series.aside.values())
    assert ("untrained" in kinds(series)) == bool(series.untrained.any())


@usual
@given(runs())
def test_no_count_falls_along_the_order(run):
    """Where all know their epoch, none is below one before it; the same of steps where epochs are missing."""
    line = Series.from_evaluations(run).evaluations
    epochs, steps = [e.source.epoch for e in line], [e.source.step for e in line]
    if None not in epochs:
        assert epochs == sorted(epochs)
    elif None not in steps:
        assert steps == sorted(steps)


@usual
@given(runs())
def test_a_line_given_again_is_the_same_line(run):
    series = Series.from_evaluations(run)
    again = Series.from_evaluations(series.evaluations)
    assert [e.seq for e in again.evaluations] == [e.seq for e in series.evaluations]
    assert (again.axis, again.x.tolist(), again.lam) == (series.axis, series.x.tolist(), series.lam)


@usual
@given(runs(), st.randoms())
def test_the_order_of_measuring_changes_nothing_where_nothing_else_ties(run, chance):
    run = [
        dataclasses.replace(e, source=dataclasses.replace(e.source, path=f"{k}", mtime=1e9 + k))
        for k, e in enumerate(run)
    ]
    shuffled = chance.sample(run, len(run))
    again = [dataclasses.replace(e, seq=k) for k, e in enumerate(shuffled, 1)]
    one, other = Series.from_evaluations(run), Series.from_evaluations(again)
    assert [e.source.path for e in one.evaluations] == [e.source.path for e in other.evaluations]
    assert (one.axis, one.x.tolist()) == (other.axis, other.x.tolist())
    assert one.untrained.tolist() == other.untrained.tolist()


@usual
@given(runs())
def test_columns_keep_the_line_of_the_records(run):
    history = kept(run)
    for lam in (None, 2.0):
        fast, plain = history.series(lam), Series.from_evaluations(run, lam)
        assert [e.seq for e in fast.evaluations] == [e.seq for e in plain.evaluations]
        for name in ("axis", "lam", "best", "candidates", "notes"):
            assert getattr(fast, name) == getattr(plain, name)
        for name in ("x", "untrained", "dse", "dse_se"):
            np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name), err_msg=name)


@usual
@given(runs())
def test_a_growing_lambda_is_at_each_checkpoint_that_of_the_line_so_far(run):
    growing = LambdaOfRun()
    for n, evaluation in enumerate(run, 1):
        growing.add(evaluation)
        assert growing.value == pytest.approx(Series.from_evaluations(run[:n]).lam, rel=1e-9)


def _traced(trace):
    return [e.seq for e in trace.evaluations], trace.axis, trace.x.tolist(), trace.phases


@dear
@given(runs(size=20), st.booleans())
def test_a_growing_trace_is_at_each_checkpoint_that_of_all_so_far(run, columns):
    history, growing = History(), Trace(EAGER)
    for n, evaluation in enumerate(run, 1):
        history.append(evaluation)
        growing.update(history if columns else run[:n], [history[-1] if columns else evaluation])
        whole = Trace(EAGER)
        whole.update(run[:n])
        assert _traced(growing) == _traced(whole)
        assert growing.series().lam == pytest.approx(whole.series().lam)


@dear
@given(runs(size=20), st.data())
def test_a_trace_that_puts_off_ends_as_one_that_does_not(run, data):
    history, lazy, whole = History(), Trace(EAGER), Trace(EAGER)
    for evaluation in run:
        history.append(evaluation)
        lazy.update(history, [history[-1]], more=data.draw(st.booleans()))
    lazy.update(history, [])
    whole.update(run)
    assert _traced(lazy) == _traced(whole)


def test_a_name_written_anew_with_the_weights_of_another_leaves_its_branch_behind():
    """What counts at that place is then the other name; what was beyond it is abandoned all the same."""
    run = [
        measured(1, 1, path="a.pth"),
        measured(2, 2, path="b.pth"),
        measured(3, 1, path="other.pth", content="w"),
        measured(4, 1, path="a.pth", content="w"),
    ]
    trace, whole = Trace(EAGER), Series.from_evaluations(run)
    trace.update(run)
    assert [e.seq for e in trace.evaluations] == [3]
    assert [e.seq for e in whole.evaluations] == [3, 2]
