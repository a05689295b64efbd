"""The state of a run follows from its records alone."""

import json

import pytest

from dse_monitor.metric.components import Components
from dse_monitor.publish.state import alert_state, run_state
from dse_monitor.runs.record import POINT_COLUMNS, Alert, Evaluation, Settings, Source
from dse_monitor.runs.series import Series

pytestmark = pytest.mark.fast

SETTINGS = Settings(images="a", num_images=64)
OTHER = Settings(images="b", num_images=64)


def scored(seq, epoch, separability, m_dim=0.5, settings=SETTINGS):
    parts = Components(m_inter=separability + 1.0, m_intra_image=1.0, m_intra_batch=1.0, m_dim=m_dim)
    source = Source(path=f"{epoch}.pth", epoch=float(epoch))
    return Evaluation(status="scored", source=source, settings=settings, components=parts, seq=seq)


def failed(seq, status="failed"):
    return Evaluation(status=status, source=Source(path=f"bad{seq}.pth"), reason="cut short", seq=seq)


RUN = [
    scored(1, 10, 0.1, 0.50),
    scored(2, 20, 0.4, 0.52),
    scored(4, 40, 0.2, 0.48),
    scored(5, 30, 0.3, 0.49),  # out of order
    failed(6),
    failed(7, "invalid"),
]


def change(seq, status, kind="degradation", severity="warning", **facts):
    facts = {"key": f"exp/{kind}/1/{status}", **facts}
    return Alert(kind=kind, status=status, severity=severity, seq=seq, **facts)


def test_empty_run_has_a_state():
    state = run_state([], [], run="exp")
    assert (state["run"], state["n_written"], state["points"], state["last_seq"]) == ("exp", 0, 0, 0)
    assert state["best"] is None
    assert state["last"] is None
    assert state["top3"] == []
    assert state["alert"] == {"status": "none"}
    json.dumps(state, allow_nan=False)


def test_every_status_is_counted():
    state = run_state(RUN, [change(9, "firing")], run="exp")
    counts = [state[f"n_{name}"] for name in ("written", "scored", "failed", "invalid", "alerts")]
    assert counts == [6, 4, 1, 1, 1]
    assert state["last_seq"] == 9
    assert state["columns"] == list(POINT_COLUMNS)


def test_best_and_last_are_those_of_the_series():
    line = Series.from_evaluations(RUN)
    state = run_state(RUN, [], run="exp")
    assert (state["axis"], state["lambda"], state["points"]) == ("epoch", line.lam, 4)
    assert state["best"]["path"] == "20.pth"
    assert state["best"]["dse"] == pytest.approx(line.dse[1])
    assert state["best"]["dse_se"] is None  # not measured
    assert state["last"]["epoch"] == 40.0
    assert [place["seq"] for place in state["top3"]] == [line.evaluations[i].seq for i in line.candidates]


def test_order_of_the_records_does_not_matter():
    assert run_state(RUN[::-1], [], run="exp") == run_state(RUN, [], run="exp")


def test_only_the_newest_settings_make_the_line_and_all_are_spelled_out():
    state = run_state([*RUN, scored(20, 50, 0.0, settings=OTHER)], [], run="exp")
    assert state["points"] == 1
    assert state["settings"] == OTHER.fingerprint
    assert set(state["settings_by_fingerprint"]) == {SETTINGS.fingerprint, OTHER.fingerprint}
    assert state["settings_by_fingerprint"][OTHER.fingerprint]["images"] == "b"


def test_resolved_alert_is_no_alert():
    assert alert_state([change(1, "firing"), change(2, "resolved")]) == {"status": "none"}


def test_firing_outranks_pending_and_critical_outranks_warning():
    both = [change(1, "firing", "degradation"), change(2, "pending", "health")]
    assert alert_state(both)["kind"] == "degradation"
    both = [change(1, "firing", "non-finite", "critical"), change(2, "firing", "degradation")]
    assert alert_state(both)["kind"] == "non-finite"
    both = [change(1, "firing", "degradation"), change(2, "firing", "health", "critical")]
    assert alert_state(both)["kind"] == "degradation"


def test_two_rules_of_one_kind_do_not_hide_each_other():
    failures = change(1, "firing", "health", message="three files", key="exp/1/failures/1/firing")
    stale = [
        change(k, status, "health", key=f"exp/1/stale/1/{status}")
        for k, status in ((2, "firing"), (3, "resolved"))
    ]
    assert alert_state([failures, *stale])["message"] == "three files"


def test_a_plateau_is_news_and_no_alarm():
    assert alert_state([change(1, "firing", "plateau", "info")]) == {"status": "none"}


def test_test_alert_does_not_mark_a_run():
    assert alert_state([change(1, "firing", "test")]) == {"status": "none"}


def test_alert_state_tells_since_when_and_why():
    state = run_state(RUN, [change(8, "firing", since=30.0, cause="separability")], run="exp")
    assert state["alert"]["status"] == "firing"
    assert (state["alert"]["since"], state["alert"]["cause"]) == (30.0, "separability")
    json.dumps(state, allow_nan=False)  # its unknown drop is None, not NaN


def test_watcher_is_passed_on():
    watcher = {"alive": True, "seen": 5.0, "every": 60.0, "queue": 2, "current": "a.pth", "message": ""}
    assert run_state([], [], run="exp", watcher=watcher)["watcher"] == watcher
