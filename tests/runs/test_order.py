"""Where checkpoints stand: order, axis, what is replaced, merged and untrained."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_places import measured

from dse_monitor.runs.order import in_words, steps_per_epoch
from dse_monitor.runs.record import Settings
from dse_monitor.runs.series import Series

pytestmark = pytest.mark.fast


def shown(*places, **more):
    """Axis, positions and the order of numbers 1, 2, ... of checkpoints with these (epoch, step[, time])."""
    run = [
        measured(k, epoch, step, time=time[0] if time else None, **more)
        for k, (epoch, step, *time) in enumerate(places, 1)
    ]
    series = Series.from_evaluations(run)
    return series.axis, series.x.tolist(), [e.seq for e in series.evaluations]


def kinds(series):
    return [note.kind for note in series.notes]


# ---- the axis ---------------------------------------------------------------------------------------------


def test_distinct_epochs_are_the_axis_whatever_the_steps_say():
    assert shown((1, 100), (3, 50), (2, None)) == ("epoch", [1, 2, 3], [1, 3, 2])


def test_steps_are_the_axis_where_epochs_tie():
    """One pass over the data: every file says epoch 0."""
    run = [measured(k, 0, 2 * k) for k in range(1, 11)]
    series = Series.from_evaluations(run)
    assert (series.axis, series.x.tolist()) == ("step", [2.0 * k for k in range(1, 11)])
    assert (len(series), series.counted, kinds(series)) == (10, 10, ["steps"])
    assert series.place(4) == "step 10 (epoch 0)"


def test_steps_are_the_axis_where_an_epoch_is_missing():
    assert shown((None, 20), (2, 30), (1, 10)) == ("step", [10, 20, 30], [3, 1, 2])


def test_fractions_are_the_axis_where_the_steps_of_an_epoch_are_known():
    """Ten steps an epoch, from two that state both; others know their step or their epoch alone."""
    axis, x, order = shown((1, 10), (2, 20), (None, 5), (3, None), (0, 7))
    assert (axis, x, order) == ("epoch", [0.5, 0.7, 1, 2, 3], [3, 5, 1, 2, 4])
    series = Series.from_evaluations([measured(1, 1, 10), measured(2, 2, 20), measured(3, None, 5)])
    assert series.axis == "step"  # where all know their step, that is the finer count
    mixed = Series.from_evaluations(
        [measured(k, *p) for k, p in enumerate([(1, 10), (2, 20), (None, 5), (3, None)], 1)]
    )
    assert kinds(mixed) == ["fractions"]
    assert mixed.place(0) == "epoch 0.5 (step 5)"


def test_order_is_the_axis_where_a_place_is_taken_twice():
    """timm keeps no step: two files of one epoch are told apart by their times."""
    axis, x, order = shown((1, None, 100), (1, None, 150), (2, None, 200), (0, None, 50), (2, None, 190))
    assert (axis, x, order) == ("order", [1, 2, 3, 4, 5], [4, 1, 2, 5, 3])


def test_without_any_count_file_times_are_the_order_and_not_the_order_of_measuring():
    """A backlog is measured from the newest to the oldest."""
    assert shown((None, None, 30), (None, None, 20), (None, None, 10)) == ("order", [1, 2, 3], [3, 2, 1])


def test_steps_that_begin_anew_each_epoch_order_within_it():
    axis, _, order = shown((1, 5), (0, 5), (1, 9), (0, 9))
    assert (axis, order) == ("order", [2, 4, 1, 3])


def test_what_knows_its_step_alone_stands_between_those_that_know_both_and_then_by_time():
    axis, _, order = shown(
        (1, 100, 1000),
        (2, 230, 2000),
        (4, None, 4000),
        (None, 250, 3000),
        (None, 300, 5000),
        (None, 150, 9000),
    )
    assert (axis, order) == ("order", [1, 6, 2, 4, 3, 5])  # the sixth was touched later; its step is believed


def test_what_knows_nothing_stands_where_its_time_puts_it():
    run = [measured(1, 1, time=100), measured(2, 2, time=200), measured(3, time=150)]
    series = Series.from_evaluations(run)
    assert [e.seq for e in series.evaluations] == [1, 3, 2]
    assert kinds(series) == ["times"]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([(1, 10), (2, 20)], 10),
        ([(1, 10), (2, 20), (0, 7), (2, 29)], 10),
        ([(1, 10), (2, 20), (2, 30)], None),  # 30 steps would be three epochs
        ([(0, 19), (1, 20)], 20),  # 20 alone is above 19 and not above 20
        ([(0, 15), (1, 20)], None),  # 16 to 20
        ([(1, 10)], None),  # one is not several
        ([(1, 10), (1, 10)], None),
        ([(9, 91), (8, 88)], 10),  # 10 alone: at most 91 / 9, above 88 / 9
        ([(2, 21), (3, 30)], None),  # 8 to 10, and only one may have ended an epoch
        ([(1, 10), (2, 25)], None),
        ([(0.5, 5), (1.5, 15)], None),  # fractional epochs need none
        ([(1, 0), (2, 0)], None),
        ([], None),
    ],
)
def test_steps_per_epoch_are_known_where_one_answer_is_left(places, expected):
    columns = np.array(places, float).reshape(-1, 2).T
    assert steps_per_epoch(*columns) == expected


@given(st.integers(1, 500), st.lists(st.integers(0, 5000), min_size=1, max_size=8))
def test_steps_per_epoch_are_never_wrong(true, steps):
    epochs = np.array([step // true for step in steps], float)
    found = steps_per_epoch(epochs, np.array(steps, float))
    assert found in (None, true) or all(
        e * found <= t < (e + 1) * found for e, t in zip(epochs, steps, strict=True)
    )
    twice = steps_per_epoch(np.append(epochs, [1, 2]), np.append(steps, [true, 2 * true]).astype(float))
    assert twice == true


def test_fractions_are_the_nearest_numbers_to_the_exact_quotients():
    run = [measured(1, 1, 30), measured(2, 2, 60), measured(3, None, 10), measured(4, 5)]
    x = Series.from_evaluations(run).x
    assert x[0] == float(Fraction(10, 30))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("epoch", 120.0, 120.0, 1000), "epoch 120"),
        (("epoch", 0.5, None, 5), "epoch 0.5 (step 5)"),
        (("epoch", 0.25, 0.25, 25), "epoch 0.25"),
        (("step", 1200.0, 3.0, 1200), "step 1,200 (epoch 3)"),
        (("step", 1200.0), "step 1,200"),
        (("order", 7.0, 3.0, 100), "checkpoint 7 (epoch 3, step 100)"),
        (("order", 7.0), "checkpoint 7"),
        (("step", None), "step ?"),
        (("epoch", math.nan), "epoch ?"),
    ],
)
def test_places_in_words(arguments, words):
    assert in_words(*arguments) == words


# ---- what counts ------------------------------------------------------------------------------------------


def test_of_a_name_rewritten_at_its_place_the_newer_version_counts_and_the_older_is_said():
    run = [measured(1, 5, path="a.pth"), measured(2, 6), measured(3, 5, path="a.pth")]
    series = Series.from_evaluations(run)
    assert [e.seq for e in series.evaluations] == [3, 2]
    assert [note.text for note in series.notes] == [
        "a.pth was rewritten with other weights at epoch 5: the newer version counts"
    ]
    assert series.aside == {1: "replaced"}


def test_a_rolling_name_is_a_checkpoint_each_time():
    run = [measured(k, path="last.pth", time=100 * k) for k in range(1, 5)]
    assert len(Series.from_evaluations(run)) == 4
    assert len(Series.from_evaluations([measured(k, k, path="last.pth") for k in range(1, 5)])) == 4


def test_two_names_at_one_place_with_other_weights_are_two_checkpoints():
    assert len(Series.from_evaluations([measured(1, 5, 50), measured(2, 5, 50)])) == 2


@pytest.mark.parametrize("first", ["latest", "epoch"])
def test_names_of_the_same_weights_count_once_where_their_places_do_not_contradict(first):
    """A file that knows no epoch would else make the whole run one without an axis."""
    pair = [
        measured(1, content="same", path="latest.pt"),
        measured(2, 10, content="same", path="epoch_10.pt"),
    ]
    if first == "epoch":
        pair = [dataclasses.replace(e, seq=seq) for e, seq in zip(reversed(pair), (1, 2), strict=True)]
    series = Series.from_evaluations([*pair, measured(3, 11)])
    assert (series.axis, series.x.tolist()) == ("epoch", [10, 11])
    assert [note.text for note in series.notes] == [
        "latest.pt holds the same weights as epoch_10.pt: counted once"
    ]


def test_one_step_counted_in_two_epochs_is_one_checkpoint_if_the_weights_are_the_same():
    """Lightning at the last batch of an epoch, and once more at its end."""
    series = Series.from_evaluations([measured(1, 0, 10, content="w"), measured(2, 1, 10, content="w")])
    assert [e.seq for e in series.evaluations] == [2]


def test_weights_that_did_not_change_between_two_places_are_two_checkpoints():
    assert len(Series.from_evaluations([measured(1, 1, content="w"), measured(2, 2, content="w")])) == 2


@pytest.mark.parametrize(
    ("first", "untrained"),
    [
        ((0, 0), True),
        ((None, 0), True),
        ((0, None), True),
        ((0, 5), False),  # epoch 0 was not finished, and it trained
        ((1, None), False),
    ],
)
def test_only_the_untrained_network_is_no_part_of_lambda_and_best(first, untrained):
    run = [measured(1, *first, dse=50.0)]
    run += [measured(k, None if first[0] is None else k, 10 * k) for k in range(2, 9)]
    series, rest = Series.from_evaluations(run), Series.from_evaluations(run[1:])
    assert len(series) == 8  # it is drawn
    assert series.untrained.tolist() == [untrained] + [False] * 7
    assert (series.lam == rest.lam, series.best == 0) == (untrained, not untrained)
    assert ("untrained" in kinds(series)) == untrained
    if untrained:
        assert series.counted == 7
        assert series.evaluations[series.best].seq == rest.evaluations[rest.best].seq


def test_of_several_at_epoch_0_without_a_step_one_at_most_is_untrained():
    run = [measured(1, 0, time=100), measured(2, 0, time=50), measured(3, 1, time=200)]
    series = Series.from_evaluations(run)
    assert [e.seq for e in series.evaluations if series.untrained[list(series.evaluations).index(e)]] == [2]


def test_a_name_that_was_saved_within_the_first_epoch_is_trained():
    """timm's recovery files count no finished epoch and keep no step."""
    run = [
        measured(1, 0, path="recovery-0-5.pth.tar", time=10),
        measured(2, 1, path="checkpoint-0.pth.tar", time=20),
        measured(3, 1, path="recovery-1-5.pth.tar", time=30),
        measured(4, 2, path="checkpoint-1.pth.tar", time=40),
    ]
    series = Series.from_evaluations(run)
    assert (series.axis, [e.seq for e in series.evaluations]) == ("order", [1, 2, 3, 4])
    assert not series.untrained.any()
    assert series.place(2) == "checkpoint 3 (epoch 1)"


def test_a_run_of_the_untrained_network_alone_has_no_best():
    series = Series.from_evaluations([measured(1, 0, 0)])
    assert (len(series), series.counted, series.best) == (1, 0, None)


def test_what_is_not_compared_is_said():
    other = dataclasses.replace(measured(1, 1), settings=Settings(images="e" * 12, num_images=64))
    broken = measured(2, 2, dse=math.nan)
    series = Series.from_evaluations([other, broken, measured(3, 3)])
    assert [note.text for note in series.notes] == [
        "1 checkpoint was measured under other settings: not compared",
        "1 checkpoint has terms that are not finite: not on the curve",
    ]
