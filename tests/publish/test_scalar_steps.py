"""The step of TensorBoard's own scalars: whole, and no two checkpoints of a run on one."""

import pytest
from hypothesis import given, settings
from run_places import measured, runs

from dse_monitor.publish.scalar_steps import ScalarSteps

pytestmark = pytest.mark.fast


def steps(*places):
    counter = ScalarSteps()
    return [counter.next(measured(k, *place)) for k, place in enumerate(places, 1)]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([(1, 100), (2, 200)], [100, 200]),
        ([(1,), (2,), (5,)], [1, 2, 5]),  # epochs alone
        ([(), (), ()], [1, 2, 3]),  # how many were measured
        ([(0, 2), (0, 4), (0, 6)], [2, 4, 6]),
        ([(1,), (1,), (2,)], [1, 2, 3]),  # no two on one
        ([(1, 100), (2, 200), (3,)], [100, 200, 300]),  # 100 steps an epoch, as two of them tell
        ([(1, 100), (2, 230), (2,), (3,)], [100, 230, 231, 232]),  # not before what is not later
        ([(None, 7), (None, 7)], [7, 8]),
    ],
)
def test_steps_of_known_runs(places, expected):
    assert steps(*places) == expected


def test_a_name_rewritten_at_its_place_keeps_its_step():
    counter = ScalarSteps()
    assert [counter.next(measured(k, 1, 10, path="a.pth")) for k in (1, 2)] == [10, 10]


@settings(deadline=None, max_examples=50)
@given(runs())
def test_no_two_checkpoints_share_a_step(run):
    counter, owner = ScalarSteps(), {}
    for evaluation in run:
        if evaluation.status == "scored":
            source = evaluation.source
            version = (source.path, source.epoch, source.step)
            assert owner.setdefault(counter.next(evaluation), version) == version
