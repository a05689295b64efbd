"""The best checkpoint that can still be read, in runs that keep only their last few."""

import json

import pytest

from dse_monitor.runs import identity

pytestmark = pytest.mark.fast

KEPT = 3


def _best(run):
    return json.loads((run / "dse" / "best.json").read_text())


def _write_and_rotate(watch, run, checkpoint, number, m_inter):
    checkpoint(run / f"checkpoint{number:04d}.pth", epoch=number, value=number, m_inter=m_inter)
    (run / f"checkpoint{number - KEPT:04d}.pth").unlink(missing_ok=True)
    watch.step(6)


@pytest.fixture
def rotated(tmp_path, watching, checkpoint):
    """A run whose best checkpoints are gone: it falls, and keeps the last three."""
    run = tmp_path / "exp1"
    run.mkdir()
    watch = watching(run)
    for number in range(1, 13):
        _write_and_rotate(watch, run, checkpoint, number, 1.0 - 0.01 * number)
    return run, watch


def test_best_survivor_of_a_falling_run_is_the_oldest_that_is_left(rotated):
    run, _ = rotated
    told = _best(run)
    assert (told["best"]["path"], told["best"]["exists"]) == ("checkpoint0001.pth", False)
    assert told["surviving"]["path"] == "checkpoint0010.pth"


def test_looking_for_the_best_survivor_takes_no_longer_in_a_longer_run(rotated, checkpoint, monkeypatch):
    run, watch = rotated
    looks = []
    plain = identity.stamp
    monkeypatch.setattr(identity, "stamp", lambda path: looks.append(path) or plain(path))
    counts = []
    for number in range(13, 33):
        looks.clear()
        _write_and_rotate(watch, run, checkpoint, number, 1.0 - 0.01 * number)
        counts.append(len(looks))
    assert len(set(counts[2:])) == 1


def test_file_that_comes_back_is_the_best_survivor_again(rotated, tmp_path, checkpoint):
    run, watch = rotated
    (run / "checkpoint0011.pth").rename(tmp_path / "elsewhere.pth")
    for number in (13, 14):
        _write_and_rotate(watch, run, checkpoint, number, 1.0 - 0.01 * number)
    assert _best(run)["surviving"]["path"] == "checkpoint0012.pth"
    (tmp_path / "elsewhere.pth").rename(run / "checkpoint0011.pth")
    _write_and_rotate(watch, run, checkpoint, 15, 0.5)
    told = _best(run)["surviving"]
    assert (told["path"], told["file"]) == ("checkpoint0011.pth", "checkpoint0011.pth")


def test_survivors_are_the_same_after_a_restart(rotated, watching, checkpoint):
    run, watch = rotated
    before = _best(run)
    watch.monitor.close()
    again = watching(run)
    again.step(6)
    assert _best(run) == before
    _write_and_rotate(again, run, checkpoint, 13, 0.5)
    assert _best(run)["surviving"]["path"] == "checkpoint0011.pth"
