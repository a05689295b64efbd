"""A watcher killed at any write loses nothing, repeats no score, and tells no alert twice.

The killed watcher is a real process (a fork of this one) that ends itself by SIGKILL inside the n-th write.
"""

import itertools
import os
import signal

import pytest
from watch_fakes import FakeClock, Watching
from watch_kills import RISE_AND_FALL, make_run, outcome, writes

from dse_monitor.publish import events
from dse_monitor.runs import ledger

STRIDE = 12  # so many tests share the writes, that none is long
SHARES = [1, *(pytest.param(first, marks=pytest.mark.slow) for first in range(2, STRIDE + 1))]


def _watch(run, clock=None):
    with Watching(clock or FakeClock(), run, once=True, keep_best=1) as watch:
        assert watch.run() == 0
        return watch


def _killed_at(run, point, monkeypatch):
    """Watch in a child that dies inside write number ``point``; False when it came through to the end."""
    child = os.fork()
    if child == 0:
        count = 0

        def hit(half):
            nonlocal count
            count += 1
            if count == point:
                if half is not None:
                    half()
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            writes(monkeypatch, hit)
            _watch(run)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", SHARES)
def test_killed_at_every_write_and_started_again_gives_the_same(tmp_path, monkeypatch, first):
    reference = make_run(tmp_path / "reference" / "exp1")
    _watch(reference)
    expected = outcome(reference)
    assert len(expected["scores"]) == len(RISE_AND_FALL)
    assert any(status == "firing" for _, status, _ in expected["alerts"])
    killed = 0
    for point in itertools.count(first, STRIDE):
        run = make_run(tmp_path / str(point) / "exp1")
        if not _killed_at(run, point, monkeypatch):
            break
        killed += 1
        _watch(run)
        assert outcome(run) == expected, f"killed in write {point}"
        view, found = ledger.read(run / "dse"), events.published(run / "dse")
        assert found.evaluations == {e.seq for e in view.evaluations}, f"killed in write {point}"
        assert {key for _, key in found.alerts} == {a.key for a in view.alerts}
        sequence = [record.seq for record in (*view.evaluations, *view.alerts)]
        assert len(set(sequence)) == len(sequence)
    assert killed >= 100 // STRIDE
