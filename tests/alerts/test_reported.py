"""What is worth reporting next, given what was reported."""

import pytest

from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.reported import Reported
from dse_monitor.alerts.status import Status
from dse_monitor.runs.record import Alert

pytestmark = pytest.mark.fast

DAY = 86_400.0


def _day_after_day(reported, severities, start=1):
    """What is reported about a degradation that stands so on each day."""
    keys = []
    for day, severity in enumerate(severities, start):
        status = Status(status="firing", severity=severity) if severity else Status()
        key = reported.due("degradation", status, fresh=True, now=day * DAY)
        if key is not None:
            alert = Alert(kind="degradation", status=key.status, severity=severity, wall_time=day * DAY)
            reported.note(key, alert, day * DAY)
            keys.append(str(key))
    return keys


def test_no_key_comes_twice_when_an_alert_grows_critical_between_its_reminders():
    """A sink that has seen a key skips it: a number that came back would lose a reminder."""
    keys = _day_after_day(Reported("r", Rules()), ["warning"] * 3 + ["critical"] * 3)
    assert keys == [
        "r/degradation/1/firing",
        "r/degradation/1/firing-reminder-1",
        "r/degradation/1/firing-reminder-2",
        "r/degradation/1/firing-critical",
        "r/degradation/1/firing-reminder-3",
        "r/degradation/1/firing-reminder-4",
    ]


def test_reminders_are_counted_anew_in_the_next_episode():
    keys = _day_after_day(Reported("r", Rules()), ["warning"] * 2 + [""] + ["warning"] * 2)
    assert keys[1] == "r/degradation/1/firing-reminder-1"
    assert keys[-1] == "r/degradation/2/firing-reminder-1"
