"""Rules count checkpoints, wherever in an epoch they stand; alerts say where in both counts."""

import numpy as np
import pytest
from run_places import measured

from dse_monitor.alerts.book import AlertBook
from dse_monitor.alerts.replay import replay
from dse_monitor.alerts.selection import before_alarm
from dse_monitor.alerts.trace import lineage
from dse_monitor.runs.ledger import Ledger
from dse_monitor.runs.record import OUTPUT_FOLDER
from dse_monitor.runs.series import Series

pytestmark = pytest.mark.fast


def fifty(count=5, first=1):
    """Fifty checkpoints in so many epochs; DSE rises, then falls from the thirtieth on."""
    dse = np.concatenate([1 - np.exp(-np.arange(30) / 6), np.linspace(1, 0, 20)])
    return [
        measured(k, (k - 1) * count // 50, 100 * k, dse=float(value), m_dim=0.0)
        for k, value in enumerate(dse, first)
    ]


def told(run):
    book = AlertBook("r")
    return [alert for k, e in enumerate(run) for alert in book.advance([e], now=60.0 * k)]


@pytest.mark.parametrize("epochs", [1, 5, 50])
def test_fifty_checkpoints_are_judged_alike_in_however_many_epochs(epochs):
    [alert] = [a for a in told(fifty(epochs)) if a.status == "firing"][:1]
    assert alert.step == 3700
    best = Series.from_evaluations(fifty(epochs))
    assert best.evaluations[best.best].source.step == 3100


def test_an_alert_within_an_epoch_says_step_and_epoch():
    [alert] = [a for a in told(fifty()) if a.status == "firing"][:1]
    assert (alert.axis, alert.best_at, alert.since) == ("step", 3100, 3600)
    assert "the best, step 3,100 (epoch 3) (c31.pth)" in alert.message
    assert "degraded since step 3,600 (epoch 3)" in alert.message
    assert alert.message.startswith("DSE at step 3,700 (epoch 3) is")


def test_the_untrained_network_is_in_no_judgement():
    """Its DSE, far above all, is neither level to fall from nor range to compare with."""
    start = measured(1, 0, 0, dse=50.0, m_dim=0.0)
    run = fifty(first=2)
    with_start, without = told([start, *run]), told(run)
    assert [(a.kind, a.step, a.since, a.best_at, a.lam) for a in with_start] == [
        (a.kind, a.step, a.since, a.best_at, a.lam) for a in without
    ]
    series = Series.from_evaluations([start, *run])
    assert 0 not in before_alarm(series)
    assert [k - 1 for k in before_alarm(series)] == before_alarm(Series.from_evaluations(run))


def ledger_of(folder, run):
    book = Ledger.open(folder / OUTPUT_FOLDER)
    for evaluation in run:
        book.append_evaluation(evaluation, {})
    book.close()
    return folder


def test_a_replay_says_what_does_not_count_and_what_the_order_rests_on(tmp_path):
    run = fifty(1)
    again = measured(60, 0, 1000, path=run[9].source.path, content="other", dse=0.8)
    found = replay(ledger_of(tmp_path, [*run, again]))
    assert found.notes[0].startswith("c10.pth was rewritten with other weights")
    assert "50 checkpoints share their epoch with another: ordered by step" in found.notes
    assert found.notes[-1].startswith("40 on a branch that was abandoned")
    assert len(found.series) == 10
    assert "best        step " in str(found)


def test_a_table_may_tell_steps_beside_epochs_or_in_their_place(tmp_path):
    rows = [(e.source.epoch, e.source.step, e.components.m_inter) for e in fifty()]
    both, steps = tmp_path / "both.csv", tmp_path / "steps.csv"
    both.write_text("epoch,step,dse\n" + "".join(f"{e},{s},{d}\n" for e, s, d in rows))
    steps.write_text("step,dse\n" + "".join(f"{s},{d}\n" for _, s, d in rows))
    for path in (both, steps):
        found = replay(path).to_json()
        assert (found["axis"], found["checkpoints"], found["best"]) == ("step", 50, 3100)
        assert [alert["step"] for alert in found["alerts"]][:1] == [3600]  # no errors given


def test_a_branch_begins_where_a_step_within_an_epoch_was_written_anew():
    run = [measured(k, 0, 10 * k) for k in range(1, 7)]
    resumed = measured(9, 0, 30, path=run[2].source.path, content="other")
    line = lineage([*run, resumed])
    assert [e.seq for e in line.evaluations] == [1, 2, 9]
    assert line.abandoned == 3
    assert (line.axis, line.furthest) == ("step", 60)
