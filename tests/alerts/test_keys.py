"""Keys of alerts: what stands in old ledgers is what is written and read."""

from __future__ import annotations

import pytest

from dse_monitor.alerts.keys import AlertKey, Change
from dse_monitor.runs.record import Alert

pytestmark = pytest.mark.fast

SPELLED = {
    "runs/exp1/degradation/2/firing": (Change.FIRING, 0),
    "runs/exp1/degradation/2/firing-critical": (Change.CRITICAL, 0),
    "runs/exp1/degradation/2/firing-reminder-13": (Change.REMINDER, 13),
    "runs/exp1/degradation/2/resolved": (Change.RESOLVED, 0),
}


@pytest.mark.parametrize("text", SPELLED)
def test_a_key_is_written_as_it_is_read(text):
    change, reminder = SPELLED[text]
    key = AlertKey.parse(text)
    assert key == AlertKey(run="runs/exp1", rule="degradation", episode=2, change=change, reminder=reminder)
    assert str(key) == text
    assert key.status == ("resolved" if text.endswith("resolved") else "firing")


@pytest.mark.parametrize("text", ["", "k", "run/rule/one/firing", "run/rule/1/shouting", "run/rule/1"])
def test_what_is_not_a_key_is_refused(text):
    with pytest.raises(ValueError, match="is not the key of an alert"):
        AlertKey.parse(text)


@pytest.mark.parametrize("status", ["firing", "resolved"])
def test_an_alert_with_an_unreadable_key_belongs_to_the_first_episode_of_its_kind(status):
    key = AlertKey.of(Alert(kind="degradation", status=status, run="r", key="k"))
    assert (key.rule, key.episode, key.status) == ("degradation", 1, status)
