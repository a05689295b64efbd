"""What people ask while a watcher works, or while none does."""

import json

import pytest

from dse_monitor.errors import OutputError
from dse_monitor.runs import ledger
from dse_monitor.watch.console import Problem
from dse_monitor.watch.run import requests

pytestmark = pytest.mark.fast

RISE = [0.0, 0.3, 0.55, 0.75, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0]
FALL = [0.75, 0.6, 0.5, 0.45]
DAY = 86400.0


def silences(home):
    lines = (home / ledger.NAME).read_text().splitlines()
    return [fact for fact in map(json.loads, lines) if fact["kind"] == "silence"]


def degradations(home):
    return [alert.status for alert in ledger.read(home).alerts if alert.kind == "degradation"]


@pytest.fixture
def degrading(tmp_path, checkpoint):
    """A function that writes the next so many checkpoints of a run that degrades."""
    values = iter(enumerate(RISE + FALL, 1))

    def write(count):
        for epoch, value in [next(values) for _ in range(count)]:
            path = tmp_path / "exp1" / f"checkpoint{epoch - 1:04d}.pth"
            checkpoint(path, epoch=float(epoch), value=epoch, m_inter=value)
        return tmp_path / "exp1"

    return write


def test_a_watcher_at_work_hears_of_a_silence_and_of_its_end(degrading, watching, fake_clock):
    run = degrading(10)
    watch = watching(run)
    watch.step(30)
    home = run / "dse"
    requests.ask_silence(home, "degradation", now=fake_clock.time(), seconds=DAY)
    watch.step(3)
    assert [fact["rule"] for fact in silences(home)] == ["degradation"]
    assert list((home / "requests").iterdir()) == []
    for _ in FALL:
        degrading(1)
        watch.step(10)
    assert len(ledger.read(home).evaluations) == 14
    assert degradations(home) == []
    requests.ask_silence(home, "all", now=fake_clock.time(), seconds=0)
    watch.step(100)  # what is still true is told then, at the next look at the clock
    assert degradations(home) == ["firing"]


def test_the_next_watcher_takes_what_was_asked_while_none_worked(degrading, watching, fake_clock):
    run = degrading(10)
    assert watching(run, once=True).run() == 0
    requests.ask_silence(run / "dse", "degradation", now=fake_clock.time(), seconds=None)
    assert watching(run, once=True).run() == 0  # takes it into the ledger ...
    watch = watching(run)  # ... where another finds it
    for _ in FALL:
        degrading(1)
        watch.step(10)
    assert len(ledger.read(run / "dse").evaluations) == 14
    assert degradations(run / "dse") == []
    assert len(silences(run / "dse")) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"rule": "none", "since": 1, "until": 2}', '{"rule": "all"}']
)
def test_a_file_that_is_no_request_is_named_and_removed(text, degrading, watching):
    run = degrading(1)
    folder = run / "dse" / "requests"
    folder.mkdir(parents=True)
    (folder / "1.json").write_text(text)
    watch = watching(run)
    watch.step(10)
    assert ["1.json" in problem.reason for problem in watch.console.of(Problem)] == [True]
    assert silences(run / "dse") == []
    assert list(folder.iterdir()) == []


def test_a_wish_about_a_run_nobody_watched_says_where_it_cannot_go(tmp_path):
    with pytest.raises(OutputError, match=r"exp1.*No such file.*watched"):
        requests.ask_silence(tmp_path / "exp1" / "dse", "all", now=1.0, seconds=None)
