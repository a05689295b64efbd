"""Which checkpoint is next, and what the options mean."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse_monitor.checkpoints.names import NameFacts, from_name, is_rolling
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.runs.identity import Stamp
from dse_monitor.watch.files.waiting import Candidate, Filter, Queue, count_done
from dse_monitor.watch.options import WatchOptions, since_rule

pytestmark = pytest.mark.fast


def _candidate(path, *, inode=0, key=None, appeared=0.0, mtime=0):
    mark = Stamp(inode or abs(hash(path)) % 10**9, 1, mtime, mtime)
    done = count_done(from_name(path))
    return Candidate(path, mark, key, -math.inf if done is None else done, is_rolling(path), appeared)


def _order(queue, now=100.0):
    taken = []
    while (candidate := queue.take(now)) is not None:
        taken.append(candidate.path)
    return taken


def test_backlog_is_taken_newest_first_and_new_files_before_it():
    queue = Queue()
    for number in (1, 3, 2):
        queue.add(_candidate(f"checkpoint{number:04d}.pth"))
    queue.add(_candidate("checkpoint0000.pth", appeared=50.0))
    expected = ["checkpoint0000.pth", "checkpoint0003.pth", "checkpoint0002.pth", "checkpoint0001.pth"]
    assert [candidate.path for candidate in queue.in_order(100.0)] == expected
    assert _order(queue) == expected


_NAMES = ["checkpoint.pth", "last.ckpt", "model.pt", *(f"checkpoint{number:04d}.pth" for number in range(6))]
_ONE = st.tuples(
    st.sampled_from(_NAMES),
    st.sampled_from([0.0, 10.0, 40.0, 60.0, 61.0, 99.0]),  # when it appeared
    st.integers(1, 4),  # inode
    st.sampled_from([None, "a", "b"]),  # content
    st.integers(0, 2),  # file time
)


@given(
    st.lists(_ONE, max_size=20), st.lists(st.sampled_from(_NAMES)), st.none() | st.just(80.0), st.booleans()
)
def test_queue_is_sorted_as_if_it_were_sorted_anew(added, removed, lifetime, once):
    """Against the plain rule, looked at for every candidate each time one is taken."""
    now, queue, known = 100.0, Queue(once=once), {}
    if lifetime is not None:
        queue.appeared("gone.pth", 1.0)
        queue.vanished("gone.pth", 1.0 + lifetime, rolling=False)
    for name, appeared, inode, key, mtime in added:
        known[name] = _candidate(name, inode=inode, key=key, appeared=appeared, mtime=mtime)
        queue.add(known[name])
    for name in removed:
        assert queue.remove(name) == (known.pop(name, None) is not None)

    def urgency(candidate):
        if once:
            done = candidate.done if math.isfinite(candidate.done) else math.inf
            return -done, -candidate.stamp.mtime_ns, candidate.path
        old = lifetime is not None and candidate.appeared > 0 and now - candidate.appeared > lifetime / 2
        mtime = candidate.stamp.mtime_ns
        return candidate.rolling or old, candidate.appeared, candidate.done, mtime, candidate.path

    def same(one, other):
        a, b = one.stamp, other.stamp
        key = one.content_key is not None and one.content_key == other.content_key
        return key or (a.inode, a.size, a.mtime_ns) == (b.inode, b.size, b.mtime_ns)

    in_order = sorted(known.values(), key=urgency, reverse=True)
    assert list(queue.in_order(now)) == in_order
    while known:
        first = max(known.values(), key=urgency)
        twins = [candidate for candidate in known.values() if same(candidate, first)]
        assert sorted(c.path for c in queue.twins(first)) == sorted(c.path for c in twins)
        expected = min(twins, key=lambda candidate: (candidate.rolling, candidate.path))
        assert queue.take(now) == known.pop(expected.path)
        assert len(queue) == len(known)
        assert expected.path not in queue
    assert queue.take(now) is None


def test_finished_run_is_taken_in_training_order():
    queue = Queue(once=True)
    for name in ("checkpoint.pth", "checkpoint0003.pth", "checkpoint0001.pth"):
        queue.add(_candidate(name))
    assert _order(queue) == ["checkpoint0001.pth", "checkpoint0003.pth", "checkpoint.pth"]


def test_files_about_to_be_rotated_away_go_first():
    queue = Queue()
    queue.appeared("checkpoint0000.pth", 0.0)
    queue.vanished("checkpoint0000.pth", 60.0, rolling=False)  # files live for a minute in this run
    queue.add(_candidate("checkpoint0001.pth", appeared=50.0))
    queue.add(_candidate("checkpoint0002.pth", appeared=95.0))
    queue.add(_candidate("checkpoint.pth", appeared=10.0))
    assert _order(queue) == ["checkpoint0001.pth", "checkpoint.pth", "checkpoint0002.pth"]


def test_of_equal_contents_the_name_that_stays_is_taken():
    queue = Queue()
    queue.add(_candidate("last.pth", inode=7, appeared=9.0))
    queue.add(_candidate("checkpoint0001.pth", inode=7))
    assert queue.take(0.0).path == "checkpoint0001.pth"
    queue = Queue()
    queue.add(_candidate("checkpoint.pth", key="k", appeared=9.0))
    queue.add(_candidate("ckp-10.pth", key="k"))
    assert queue.take(0.0).path == "ckp-10.pth"


def test_min_interval_passes_over_what_lies_close_to_any_that_was_taken():
    options = WatchOptions(runs=(Path("r"),), config=EvaluationConfig(images="i"), min_interval=10.0)
    chosen = Filter(options, from_name, now=0.0)
    times = [100.0, 105.0, 110.0, 95.0, 100.0, 90.0, 119.9, 120.0, 0.0]
    taken = [not chosen.refuses(f"c{k}.pth", Stamp(k, 1, int(t * 1e9), 0)) for k, t in enumerate(times)]
    assert taken == [True, False, True, False, True, True, False, True, True]


@pytest.mark.parametrize(
    ("text", "facts", "mtime", "passes"),
    [
        ("10", NameFacts(epoch_done=10.0), 0.0, True),
        ("10", NameFacts(epoch_done=9.0), 0.0, False),
        ("5000", NameFacts(step_done=4999), 0.0, False),
        ("10", NameFacts(), 0.0, True),
        ("2h", NameFacts(), 9_000.0, True),
        ("2h", NameFacts(), 2_000.0, False),
        ("1970-01-02", NameFacts(), 200_000.0, True),
        ("1970-01-03T00:00", NameFacts(), 10_000.0, False),
    ],
)
def test_since_takes_counts_dates_and_spans(text, facts, mtime, passes):
    assert since_rule(text, now=10_000.0)(facts, mtime) == passes


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": ()},
        {"since": "soon"},
        {"every": 0},
        {"devices": ()},
        {"min_interval": -1.0},
        {"poll_seconds": float("nan")},
        {"settle_seconds": -1.0},
        {"keep_best": -1},
        {"copy_aside": -1},
        {"until_epoch": -1.0},
        {"gpu_share": 0.0},
        {"gpu_share": float("nan")},
        {"threads": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match=r"\w+"):
        WatchOptions(**{"runs": (Path("r"),), "config": EvaluationConfig(images="i"), **changes})


def test_request_changes_with_what_is_measured_and_not_with_where():
    def request(**changes):
        return WatchOptions(runs=(Path("r"),), config=EvaluationConfig(images="i", **changes)).request

    assert request() == request(micro_batch=8) == request(layout=None)
    assert len({request(), request(seed=1), request(num_heads=6)}) == 3


def test_output_folder_of_one_and_of_several_runs():
    def options(*runs, out=None):
        return WatchOptions(runs=tuple(map(Path, runs)), config=EvaluationConfig(images="i"), out=out)

    assert options("a").output(Path("a")) == Path("a/dse")
    assert options("a", out=Path("o")).output(Path("a")) == Path("o")
    assert options("a", "b", out=Path("o")).output(Path("a")) == Path("o/a")
    assert options("runs", out=Path("o")).output(Path("runs/x/y"), Path("runs")) == Path("o/x/y")
