import dataclasses
import math
import random

import numpy as np
import pytest

from dse_monitor.alerts import book as state
from dse_monitor.alerts import trace
from dse_monitor.alerts.book import AlertBook
from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.silences import silence_fact
from dse_monitor.runs.record import alert_from_json, to_json

pytestmark = pytest.mark.fast

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]

HOUR, DAY = 3600.0, 86400.0
RISE = [0.0, 0.3, 0.55, 0.75, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0]  # epochs 10 to 100, best at 60
FALL = [0.75, 0.6, 0.5, 0.45]
BACK = [0.75, 0.95, 1.0, 1.0, 1.0]
FIRED = ("degradation", "firing", 120)  # the second checkpoint of a fall from RISE
ENDED = ("degradation", "resolved", 180)  # BACK after FALL: two checkpoints near the best


def feed(book, evaluations, start=1000.0, every=60.0):
    """Checkpoint by checkpoint; every alert with the epoch it came at."""
    return [a for k, e in enumerate(evaluations) for a in book.advance([e], now=start + every * k)]


def story(alerts):
    return [(a.kind, a.status, a.epoch) for a in alerts]


DEGRADING = ("DINO", "BYOL", "iBOT", "Mugs")
HEALTHY = ("DenseCL", "SimSiam", "VICRegL", "MAE")


@pytest.mark.parametrize("name", DEGRADING)
def test_fires_on_published_runs_that_degrade(name, published, run_of):
    alerts = feed(AlertBook("r"), run_of(published[name]["dse"]))
    assert ("degradation", "firing") in [(a.kind, a.status) for a in alerts]


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on_published_runs_that_do_not(name, published, run_of):
    alerts = feed(AlertBook("r"), run_of(published[name]["dse"]))
    assert [a for a in alerts if a.kind == "degradation"] == []


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", DEGRADING + HEALTHY)
def test_noise_of_two_percent_changes_neither(name, given, published, run_of):
    rng = np.random.default_rng(7)
    for _ in range(3):
        dse = published[name]["dse"] + 0.02 * rng.normal(size=len(published[name]["dse"]))
        alerts = feed(AlertBook("r"), run_of(dse, se=0.02 if given else math.nan))
        assert any(a.kind == "degradation" and a.status == "firing" for a in alerts) == (name in DEGRADING)


def test_one_firing_then_one_resolve(run_of):
    alerts = feed(AlertBook("r"), run_of(RISE + FALL + BACK, se=0.005))
    assert story(alerts) == [FIRED, ENDED]
    assert len({a.key for a in alerts}) == 2


def test_the_alert_tells_best_drop_and_since(run_of):
    [alert] = feed(AlertBook("exp1"), run_of(RISE + FALL, se=0.005))[:1]
    assert (alert.run, alert.best_at, alert.best_path, alert.since) == ("exp1", 60, "c60.pth", 110)
    assert alert.drop == pytest.approx(0.4)  # from 1.0 to 0.6
    assert alert.drop_se == pytest.approx(0.005 * math.sqrt(2))
    assert alert_from_json(to_json(alert)) == alert


def test_the_cause_is_named_with_its_share(evaluation):
    dim = [0.2, 0.4, 0.5, 0.6, 0.6, 0.6, 0.5, 0.4, 0.35, 0.3]
    separability = [-1.0, -0.8, -0.7, -0.65, -0.6, -0.6, -0.6, -0.6, -0.6, -0.6]
    run = [
        evaluation(s, d, epoch=k, se=0.001) for k, (s, d) in enumerate(zip(separability, dim, strict=True), 1)
    ]
    [alert] = feed(AlertBook("r"), run)[:1]
    assert alert.cause == "m_dim"
    assert alert.shares == {"separability": pytest.approx(0.0), "m_dim": pytest.approx(1.0)}
    assert "dimensional collapse" in alert.message


def test_growing_worse_is_told_once_more_as_critical(run_of):
    fall = [0.75, 0.6, 0.55, 0.5, 0.3, 0.1, 0.0, -0.2, -0.4]
    alerts = feed(AlertBook("r"), run_of(RISE + fall, se=0.005))
    assert [a.severity for a in alerts] == ["warning", "critical"]


@pytest.mark.parametrize("seed", SEEDS)
def test_order_of_arrival_does_not_change_the_final_state(seed, run_of):
    run = run_of(RISE + FALL + BACK + FALL, se=0.005)
    shuffled = random.Random(seed).sample(run, len(run))
    one, other = AlertBook("r"), AlertBook("r")
    feed(one, run)
    feed(other, shuffled)
    assert one.states == other.states
    assert one.states["degradation"].status == "firing"


def test_backfilled_checkpoints_never_fire(run_of):
    run = run_of(RISE + FALL, se=0.005)
    book = AlertBook("r")
    assert feed(book, [run[-1], *run[:-1]]) == []
    assert book.states["degradation"].status == "firing"


def test_the_next_checkpoint_tells_what_the_backlog_showed(run_of):
    run = run_of([*RISE, *FALL, 0.4], se=0.005)
    assert story(feed(AlertBook("r"), [run[-2], *run[:-2], run[-1]])) == [("degradation", "firing", 150)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_backlog_judged_in_bursts_ends_as_one_judged_at_once(seed, run_of, monkeypatch):
    """Checkpoints that come while others wait, old and new ones mixed: the end is that of the plain way."""
    shape = np.repeat(RISE + FALL + BACK + FALL, 8)
    run = run_of(shape + np.random.default_rng(seed).normal(0, 0.01, len(shape)), se=0.005)
    newest_first, behind = list(reversed(run[:-20])), run[-20:]
    arrivals = [
        e for k, e in enumerate(newest_first) for e in ([e, behind.pop(0)] if k % 7 == 3 and behind else [e])
    ]
    book, plain, looks = AlertBook("r"), AlertBook("r"), 0
    judge = trace.judge

    def count(*given):
        nonlocal looks
        looks += 1
        return judge(*given)

    plain.advance(arrivals, now=0.0)
    monkeypatch.setattr(trace, "judge", count)
    for k, evaluation in enumerate(arrivals):
        book.advance([evaluation], now=60.0 * k, more=k + 1 < len(arrivals))
    assert book.states == plain.states
    assert looks < 8 * len(arrivals)  # 50 times as many when each is judged as it comes
    [fresh] = run_of([0.0], first=10 * len(shape) + 10)
    assert (
        story(book.advance([fresh], now=1e6))
        == story(plain.advance([fresh], now=1e6))
        == [("degradation", "firing", fresh.source.epoch)]
    )


def test_an_alert_during_a_backlog_is_told_on_all_that_is_known(run_of):
    run = run_of([*RISE, *RISE[-1:] * 8, *FALL, 0.4], se=0.005)
    best = dataclasses.replace(run[8], components=dataclasses.replace(run[8].components, m_inter=1.05))
    book = AlertBook("r")
    first = [*run[:8], *run[9:-1]]  # all but one of the plateau, and the last
    for evaluation in first[:-4]:
        book.advance([evaluation], now=0.0, more=True)
    assert book.advance([best], now=1.0, more=True) == []
    told = [a for e in (*first[-4:], run[-1]) for a in book.advance([e], now=2.0, more=True)]
    assert [a.best_at for a in told if a.kind == "degradation"] == [best.source.epoch]


@pytest.mark.parametrize("change", ["settings", "axis", "rewritten", "same place"])
def test_what_changes_more_than_one_place_is_judged_at_once(change, run_of, evaluation):
    run = run_of([*RISE * 3, *FALL], se=0.005)
    book, plain = AlertBook("r"), AlertBook("r")
    for e in run:
        book.advance([e], now=0.0, more=True)
    odd = {
        "settings": lambda: dataclasses.replace(
            evaluation(0.5, epoch=55, seq=10**7), settings=dataclasses.replace(run[0].settings, num_images=9)
        ),
        "axis": lambda: evaluation(0.5, step=70, seq=10**7),
        "rewritten": lambda: evaluation(0.5, epoch=50, seq=10**7, content="other"),
        "same place": lambda: evaluation(0.5, epoch=50, seq=10**7, path="other.pth"),
    }[change]()
    book.advance([odd], now=1.0, more=True)
    plain.advance([*run, odd], now=1.0)
    assert book.states == plain.states


def test_a_restart_repeats_nothing_and_forgets_nothing(run_of):
    run = run_of(RISE + FALL + BACK, se=0.005)
    for cut in range(len(run)):
        book = AlertBook("r")
        said = feed(book, run[:cut])
        reborn = AlertBook("r")
        reborn.restore([alert_from_json(to_json(a)) for a in said])
        assert reborn.advance(run[:cut], now=5000.0) == []
        said += feed(reborn, run[cut:], start=6000.0)
        assert story(said) == [FIRED, ENDED]
        assert [a.key for a in said] == ["r/degradation/1/firing", "r/degradation/1/resolved"]


def test_an_alert_lost_between_score_and_ledger_is_told_after_restart(run_of):
    run = run_of([*RISE, 0.75, 0.6], se=0.005)
    assert story(AlertBook("r").advance(run, now=0.0)) == [FIRED]


def test_handing_in_everything_each_time_is_the_same_as_the_new_ones(run_of):
    run = run_of(RISE + FALL + BACK, se=0.005)
    book, alerts = AlertBook("r"), []
    for n in range(1, len(run) + 1):
        alerts += book.advance(run[:n], now=60.0 * n)
    assert [a.key for a in alerts] == [a.key for a in feed(AlertBook("r"), run)]


def test_failed_evaluations_neither_resolve_nor_fire(run_of, evaluation):
    book = AlertBook("r", Rules(failures=100))
    feed(book, run_of(RISE + FALL, se=0.005))
    gap = [evaluation(epoch=150 + k, status="failed", seq=10**6 + k) for k in range(5)]
    assert feed(book, gap, start=2000.0) == []
    assert book.states["degradation"].status == "firing"
    assert book.states["degradation"].unknown
    pending = AlertBook("r", Rules(failures=100))
    feed(pending, [*run_of([*RISE, 0.6], se=0.005), *gap])
    assert pending.states["degradation"].status == "pending"


def test_three_failures_in_a_row_are_a_health_alert(evaluation):
    run = [
        evaluation(0.1 * k, epoch=k, status="failed" if k in (2, 4, 5, 6) else "scored") for k in range(1, 9)
    ]
    assert story(feed(AlertBook("r"), run)) == [("health", "firing", 6), ("health", "resolved", 7)]


def test_one_file_that_fails_again_and_again_counts_once(evaluation):
    run = [evaluation(status="failed", path="broken.pth", seq=k) for k in range(1, 9)]
    assert feed(AlertBook("r"), run) == []


def test_non_finite_features_alert_at_once_and_are_never_best(evaluation, run_of):
    book = AlertBook("r")
    feed(book, run_of(RISE))
    bad = evaluation(epoch=110, status="invalid", reason="3 of 8 images have NaN features")
    [alert] = book.advance([bad], now=2000.0)
    assert (alert.kind, alert.status, alert.severity, alert.best_at) == (
        "non-finite",
        "firing",
        "critical",
        60,
    )
    assert "3 of 8 images have NaN features" in alert.message
    [ended] = book.advance([evaluation(1.0, epoch=120)], now=2100.0)
    assert (ended.kind, ended.status) == ("non-finite", "resolved")


def test_a_run_resumed_from_an_older_checkpoint_starts_a_new_branch(evaluation):
    def at(epoch, dse, seq):
        return evaluation(dse, epoch=epoch, se=0.005, seq=seq, path=f"c{epoch}.pth", content=f"{seq}")

    collapsed = [at(10 * k, v, k) for k, v in enumerate(RISE + FALL, 1)]
    resumed = [at(100, 1.0, 21), at(110, 1.02, 22), at(120, 1.04, 23)]
    book = AlertBook("r")
    alerts = feed(book, [*collapsed, *resumed])
    assert story(alerts)[0] == FIRED
    assert story(alerts)[-1][:2] == ("degradation", "resolved")
    assert book.states["degradation"].status != "firing"


def test_steps_going_back_after_a_resume_are_no_degradation(evaluation):
    run = [
        evaluation(0.1 * s, step=s, seq=k, path=f"{s}", content=f"{k}")
        for k, s in enumerate((10, 20, 30, 20, 30, 40), 1)
    ]
    assert feed(AlertBook("r"), run) == []


def test_flapping_around_the_margin_makes_at_most_one_alert_per_crossing(run_of):
    wave = 1.0 - 0.2 + 0.04 * np.sin(np.arange(80) * 1.3)
    alerts = feed(AlertBook("r"), run_of([*RISE, *[1.0] * 10, *wave], se=0.002), every=DAY / 100)
    assert len([a for a in alerts if a.status == "firing" and "reminder" not in a.key]) <= 1
    assert not any(a.status == "resolved" for a in alerts)


def test_a_reminder_every_day_while_it_lasts(run_of):
    book = AlertBook("r")
    feed(book, run_of(RISE + FALL, se=0.005), start=0.0, every=1.0)
    told = [a.key.rsplit("/", 1)[1] for t in np.arange(0, 3.5 * DAY, HOUR) for a in book.advance([], now=t)]
    assert told == ["firing-reminder-1", "firing-reminder-2", "firing-reminder-3"]


def test_the_reminder_timer_survives_a_restart(run_of):
    run = run_of(RISE + FALL, se=0.005)
    book, reborn = AlertBook("r"), AlertBook("r")
    said = feed(book, run, start=0.0, every=1.0)
    reborn.restore(said)
    assert reborn.advance(run, now=DAY - HOUR) == []
    assert len(reborn.advance([], now=DAY + HOUR)) == 1


def test_no_more_than_six_messages_per_hour_and_the_last_word_is_told_later(evaluation):
    book = AlertBook("r", Rules(stale_seconds=0.0))
    flips = [evaluation(1.0, epoch=k, status="scored" if k % 2 else "invalid") for k in range(1, 21)]
    assert len(feed(book, flips, start=0.0, every=10.0)) == 6
    assert book.states["non-finite"].status == "firing"
    [late] = book.advance([], now=2 * HOUR)
    assert (late.kind, late.status) == ("non-finite", "firing")


def test_a_silence_for_a_time_holds_the_alert_back(run_of):
    book = AlertBook("r")
    book.silence(silence_fact("degradation", now=0.0, seconds=HOUR))
    assert feed(book, run_of(RISE + FALL, se=0.005), start=0.0) == []
    assert story(book.advance([], now=2 * HOUR)) == [("degradation", "firing", 140)]


def test_a_silence_until_resolved_mutes_reminders_but_not_the_end(run_of):
    run = run_of(RISE + FALL + BACK + FALL, se=0.005)
    book = AlertBook("r")
    feed(book, run[:14], start=0.0, every=1.0)
    book.silence(silence_fact("degradation", now=20.0))
    assert book.advance([], now=3 * DAY) == []
    after = feed(book, run[14:], start=4 * DAY, every=HOUR)
    assert [a.status for a in after] == ["resolved", "firing"]


def test_silences_survive_a_restart_until_their_alert_is_resolved(run_of):
    run = run_of(RISE + FALL + BACK + FALL, se=0.005)
    said = feed(AlertBook("r"), run[:14], start=0.0, every=1.0)
    fact = silence_fact("degradation", now=20.0)
    muted = AlertBook("r")
    muted.restore(said, [fact])
    muted.advance(run[:14], now=30.0)
    assert muted.advance([], now=3 * DAY) == []
    ended = feed(muted, run[14:19], start=4 * DAY, every=HOUR)
    later = AlertBook("r")
    later.restore(said + ended, [fact])
    later.advance(run[:19], now=5 * DAY)
    assert [a.status for a in feed(later, run[19:], start=5 * DAY)] == ["firing"]


@pytest.mark.parametrize("rule", ["degradation", "all"])
def test_a_silence_can_be_taken_back(rule, run_of):
    book = AlertBook("r")
    book.silence(silence_fact("degradation", now=0.0, seconds=DAY))
    book.silence(silence_fact(rule, now=1.0, seconds=0))
    assert story(feed(book, run_of(RISE + FALL, se=0.005), start=2.0))[:1] == [FIRED]


def test_taking_back_one_silence_leaves_the_others(run_of):
    book = AlertBook("r")
    book.silence(silence_fact("degradation", now=0.0, seconds=DAY))
    book.silence(silence_fact("stale", now=1.0, seconds=0))
    assert feed(book, run_of(RISE + FALL, se=0.005), start=2.0) == []


def test_an_unknown_rule_cannot_be_silenced():
    with pytest.raises(ValueError, match="there is no rule 'degraded'"):
        silence_fact("degraded", now=0.0)


def test_a_training_that_stops_is_noticed_once(run_of):
    book = AlertBook("r")
    run = [dataclasses.replace(e, wall_time=1800.0 * k) for k, e in enumerate(run_of(RISE), 1)]
    book.advance(run, now=10 * 1800.0)
    assert book.advance([], now=10 * 1800.0 + 1.9 * HOUR) == []
    [alert] = book.advance([], now=10 * 1800.0 + 2.1 * HOUR)
    assert (alert.kind, alert.status) == ("health", "firing")
    assert book.advance([], now=10 * 1800.0 + 5 * HOUR) == []


def test_a_plateau_is_information(run_of):
    [alert] = feed(AlertBook("r"), run_of([*np.linspace(0, 1, 20), *[1.0] * 30], se=0.001))
    assert (alert.kind, alert.status, alert.severity) == ("plateau", "firing", "info")


def test_a_test_alert_says_that_it_is_one():
    alert = state.test_alert("r", now=5.0)
    assert (alert.kind, alert.severity, alert.run) == ("test", "info", "r")
    assert alert.key != state.test_alert("r", now=6.0).key
