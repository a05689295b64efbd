import dataclasses
import json
import math
import random

import numpy as np
import pytest

from dse_monitor.alerts import trace
from dse_monitor.alerts.book import AlertBook
from dse_monitor.alerts.parameters import Rules
from dse_monitor.metric.components import Components
from dse_monitor.publish.state import run_state
from dse_monitor.runs.history import History, series_of
from dse_monitor.runs.record import Evaluation, Settings, Source
from dse_monitor.runs.series import Series

pytestmark = pytest.mark.fast

OTHER = Settings(images="e" * 12, num_images=32)
USUAL = Settings(images="f" * 12, num_images=64)


def _evaluation(
    seq, *, epoch=None, step=None, status="scored", settings=USUAL, m_inter=1.0, content="", path=""
):
    components = Components(
        m_inter=m_inter,
        m_intra_image=0.5,
        m_intra_batch=0.7,
        m_dim=0.6 + 0.01 * math.sin(seq),
        m_dim_se=0.001,
        separability_se=0.004 if seq % 7 else math.nan,
        separability_dim_cov=1e-6,
        images=64,
        tokens=196,
        width=384,
    )
    source = Source(
        path=path or f"c{epoch}-{step}.pth", content=content or f"{seq:064x}", epoch=epoch, step=step, size=9
    )
    return Evaluation(
        status=status,
        source=dataclasses.replace(source, layout="dino", arch="vit 384x12", mtime=1.5),
        settings=None if status == "failed" else settings,
        components=components if status == "scored" else None,
        reason="" if status == "scored" else "unreadable",
        error="" if status == "scored" else "CorruptCheckpoint",
        wall_time=1e9 + 60 * seq,
        seq=seq,
    )


def _run(seed, length=60):
    """A run with failures, other settings, resumes, rolling names and numbers that are not finite."""
    chance = random.Random(seed)
    axis = chance.choice(["epoch", "step", "neither", "some"])
    done, found = 0, []
    for seq in range(1, length + 1):
        done = max(1, done - chance.randint(2, 9)) if chance.random() < 0.06 else done + 1
        epoch = float(done) if axis == "epoch" or (axis == "some" and chance.random() < 0.9) else None
        level = 1.0 + 0.3 * math.sin(done / 9) + 0.01 * chance.random()
        found.append(
            _evaluation(
                seq * 10,
                epoch=epoch,
                step=100 * done if axis == "step" else None,
                status=chance.choices(["scored", "failed", "invalid"], [0.88, 0.09, 0.03])[0],
                settings=OTHER if seed % 3 == 0 and seq < length // 3 else USUAL,
                m_inter=math.nan if chance.random() < 0.02 else level,
                path="last.pth" if chance.random() < 0.1 else "",
            )
        )
    return found


def _history(evaluations):
    history = History()
    for evaluation in evaluations:
        history.append(evaluation)
    return history


def test_history_gives_back_what_it_was_given():
    given = [
        _evaluation(seq * 10, epoch=float(seq), status=status)
        for seq, status in enumerate(["scored", "failed", "invalid", "scored"], 1)
    ]
    history = _history(given)
    assert [repr(e) for e in history] == [repr(e) for e in given]  # some errors are NaN
    history.alias(10, "last.pth")
    assert history[0].source.aliases == ("last.pth",)
    assert [e.seq for e in history[1:3]] == [20, 30]
    assert (history.count("scored"), history.status(20), history.last_seq) == (2, "failed", 40)
    with pytest.raises(ValueError, match="after"):
        history.append(given[0])
    with pytest.raises(KeyError):
        history.row(15)


@pytest.mark.parametrize("content", ["", "ab" * 32, "AB", "no digest", "0", "é\ud800"])
def test_any_digest_is_kept(content):
    assert _history([_evaluation(1, content=content or "")])[0].source.content == (content or f"{1:064x}")


@pytest.mark.parametrize("seed", range(24))
def test_series_is_that_of_the_evaluations(seed):
    given = _run(seed)
    history = _history(given)
    for lam in (None, 2.0):
        fast, plain = history.series(lam), Series.from_evaluations(given, lam)
        assert [e.seq for e in fast.evaluations] == [e.seq for e in plain.evaluations]
        assert (fast.axis, fast.lam, fast.candidates, fast.best) == (
            plain.axis,
            plain.lam,
            plain.candidates,
            plain.best,
        )
        for name in ("x", "separability", "m_dim", "dse", "dse_se"):
            np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name), err_msg=name)
        again = series_of(history.select(plain.evaluations), lam)
        np.testing.assert_array_equal(again.dse, plain.dse)


@pytest.mark.parametrize("seed", range(24))
def test_alerts_and_state_are_the_same_whoever_keeps_the_evaluations(seed):
    given, history = _run(seed), History()
    shared, own = AlertBook("r", history=history), AlertBook("r")
    for k, evaluation in enumerate(given):
        history.append(evaluation)
        told = shared.advance([history[-1]], now=60.0 * k), own.advance([evaluation], now=60.0 * k)
        assert [a.message for a in told[0]] == [a.message for a in told[1]]
        assert shared.states == own.states
    restarted = AlertBook("r", history=history)
    restarted.advance(history, now=1e6)
    fresh = AlertBook("r")
    fresh.advance(given, now=1e6)
    assert restarted.states == fresh.states
    assert restarted.states["degradation"] == own.states["degradation"]
    assert run_state(history, [], run="r") == run_state(given, [], run="r")


def _book(history, judged=None, rules=None):
    book = AlertBook("r", rules, history=history)
    if judged is not None:
        book.recall(judged)
    book.advance(history, now=1e6)
    return book


@pytest.fixture
def judgements_made(monkeypatch):
    """Grows by one with each judgement."""
    made, plain = [], trace.judge

    def judge(*arguments):
        made.append(1)
        return plain(*arguments)

    monkeypatch.setattr(trace, "judge", judge)
    return made


@pytest.mark.parametrize("seed", range(12))
def test_recalled_judgements_lead_to_the_same_state(seed):
    given = _run(seed, length=120)
    judged = json.loads(json.dumps(_book(_history(given[:80])).judgements()))
    recalled, fresh = _book(_history(given), judged), _book(_history(given))
    assert recalled.states == fresh.states
    assert recalled.judgements() == fresh.judgements()


def test_what_is_recalled_is_not_judged_again(judgements_made):
    given = [_evaluation(k, epoch=float(k), m_inter=1 + 0.1 * math.sin(k / 9)) for k in range(1, 101)]
    judged = _book(_history(given[:80])).judgements()
    judgements_made.clear()
    _book(_history(given), judged)
    assert len(judgements_made) == 20


@pytest.mark.parametrize("change", ["numbers", "rules", "fewer", "torn", "nothing"])
def test_judgements_on_other_numbers_or_rules_are_made_again(change, judgements_made):
    given = [_evaluation(k, epoch=float(k), m_inter=1 + 0.1 * math.sin(k / 9)) for k in range(1, 61)]
    judged, rules = _book(_history(given)).judgements(), Rules()
    if change == "numbers":
        given[30] = _evaluation(31, epoch=31.0, m_inter=1.3)
    elif change == "rules":
        rules = Rules(margin=0.3)
    elif change == "fewer":
        given = given[:50]
    elif change == "torn":
        judged["phases"][0] = judged["phases"][0][:3]
    else:
        judged = {}
    judgements_made.clear()
    book = _book(_history(given), judged, rules)
    assert len(judgements_made) == len(given)
    assert book.states == _book(_history(given), rules=rules).states
