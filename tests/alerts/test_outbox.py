import logging
import threading

import pytest

from dse_monitor.alerts.sinks.delivery import Refused, Retry
from dse_monitor.alerts.sinks.outbox import GIVE_UP, LONGEST_WAIT, Outbox
from dse_monitor.errors import OutputError
from dse_monitor.runs.record import Alert

pytestmark = pytest.mark.fast


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


class Script:
    """A sink that plays a script of exceptions and None (delivered); after it, everything is delivered."""

    def __init__(self, *script, name="script", least="info", clock=None):
        self.script, self.name, self.least = list(script), name, least
        self.clock, self.tried, self.taken = clock, [], []

    def __call__(self, alert):
        self.tried.append(self.clock() if self.clock else 0.0)
        outcome = self.script.pop(0) if self.script else None
        if outcome is not None:
            raise outcome
        self.taken.append(alert.key)


def alert(number=1, severity="warning", kind="degradation", wall_time=1_000_000.0):
    return Alert(
        kind=kind, status="firing", severity=severity, key=f"r/{kind}/{number}/firing", wall_time=wall_time
    )


def run_for(box, clock, seconds):
    """Let the fake clock run; deliveries happen when they are due."""
    end = clock.now + seconds
    while (wait := box.deliver_due()) is not None and clock.now + wait <= end:
        clock.now += wait
    clock.now = end


@pytest.fixture
def clock():
    return Clock()


def box_of(clock, *sinks, jitter=0.5):
    facts = []
    return Outbox(sinks, facts.append, clock, jitter=lambda: jitter, threads=False), facts


def test_an_alert_reaches_every_sink_once_and_that_is_recorded(clock):
    one, other = Script(name="one"), Script(name="other")
    box, facts = box_of(clock, one, other)
    box.submit(alert())
    assert box.deliver_due() is None
    assert (one.taken, other.taken) == ([alert().key], [alert().key])
    assert facts == [
        {"event": "delivered", "key": alert().key, "sink": name, "attempts": 1, "reason": ""}
        for name in ("one", "other")
    ]


def test_submitting_the_same_change_twice_delivers_it_once(clock):
    sink = Script()
    box, _ = box_of(clock, sink)
    box.submit(alert())
    box.submit(alert())
    box.deliver_due()
    box.submit(alert())
    box.deliver_due()
    assert len(sink.taken) == 1


def test_a_receiver_down_for_an_hour_loses_nothing_and_keeps_the_order(clock):
    sink = Script(*[Retry("Connection refused")] * 10, clock=clock)
    box, _ = box_of(clock, sink)
    for k in range(3):
        box.submit(alert(k))
    run_for(box, clock, 3600)
    assert sink.taken == [alert(k).key for k in range(3)]
    assert len(sink.tried) == 13


def test_waits_double_from_five_seconds_to_ten_minutes(clock):
    sink = Script(*[Retry("down")] * 12, clock=clock)
    box, _ = box_of(clock, sink)
    box.submit(alert())
    run_for(box, clock, 3 * 3600)
    gaps = [round(b - a) for a, b in zip(sink.tried, sink.tried[1:], strict=False)]
    assert gaps == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600, 600, 600]


@pytest.mark.parametrize("jitter", [0.0, 0.999])
def test_jitter_keeps_waits_within_their_bounds(jitter, clock):
    sink = Script(*[Retry("down")] * 12, clock=clock)
    box, _ = box_of(clock, sink, jitter=jitter)
    box.submit(alert())
    run_for(box, clock, 4 * 3600)
    gaps = [b - a for a, b in zip(sink.tried, sink.tried[1:], strict=False)]
    assert min(gaps) >= 5
    assert max(gaps) <= LONGEST_WAIT
    assert gaps[3] != pytest.approx(40, abs=1)


def test_retry_after_is_honoured(clock):
    sink = Script(Retry("HTTP 429", 1234.0), clock=clock)
    box, _ = box_of(clock, sink)
    box.submit(alert())
    run_for(box, clock, 3600)
    assert sink.tried[1] - sink.tried[0] == 1234


def test_a_refused_alert_is_not_tried_again_and_does_not_hold_up_the_next(clock, caplog):
    sink = Script(Refused("HTTP 404"))
    box, facts = box_of(clock, sink)
    box.submit(alert(1))
    box.submit(alert(2))
    assert box.deliver_due() is None
    assert sink.taken == [alert(2).key]
    assert [f["event"] for f in facts] == ["refused", "delivered"]
    assert [r.levelname for r in caplog.records] == ["ERROR"]


def test_after_a_day_it_is_given_up_with_one_line(clock, caplog):
    sink = Script(*[Retry("HTTP 500")] * 1000)
    box, facts = box_of(clock, sink)
    box.submit(alert())
    run_for(box, clock, GIVE_UP + 2 * LONGEST_WAIT)
    assert box.deliver_due() is None
    assert [f["event"] for f in facts] == ["gave-up"]
    assert [r.levelname for r in caplog.records] == ["WARNING", "ERROR"]
    assert "gave up" in caplog.records[1].getMessage()


def test_one_line_says_that_a_sink_fails_and_one_that_it_works_again(clock, caplog):
    caplog.set_level(logging.INFO, logger="dse_monitor.alerts")
    box, _ = box_of(clock, Script(*[Retry("HTTP 500")] * 9))
    box.submit(alert())
    run_for(box, clock, 7200)
    assert [r.getMessage().split(" (")[0] for r in caplog.records] == [
        "script does not take alerts",
        "script works again",
    ]


def test_an_unexpected_error_of_a_sink_is_tried_again_without_quoting_it(clock, caplog):
    sink = Script(
        RuntimeError("https://hooks.example/s3cret"), OutputError("the environment variable HOOK is not set")
    )
    box, _ = box_of(clock, sink)
    box.submit(alert())
    run_for(box, clock, 60)
    assert sink.taken == [alert().key]
    assert "s3cret" not in caplog.text
    assert "RuntimeError" in caplog.text
    assert "HOOK is not set" in caplog.text


def test_a_sink_for_warnings_is_not_told_information_but_gets_tests(clock):
    sink = Script(least="warning")
    box, _ = box_of(clock, sink)
    for k, (kind, severity) in enumerate(
        [("plateau", "info"), ("test", "info"), ("degradation", "critical")]
    ):
        box.submit(alert(k, severity, kind))
    box.deliver_due()
    assert sink.taken == ["r/test/1/firing", "r/degradation/2/firing"]


def test_a_restart_sends_what_was_not_delivered_and_nothing_else(clock):
    up, down = Script(name="up"), Script(*[Retry("down")] * 100, name="down")
    box, facts = box_of(clock, up, down)
    box.submit(alert(1))
    box.submit(alert(2))
    run_for(box, clock, 60)
    assert box.waiting == 2
    up, down = Script(name="up"), Script(name="down")
    reborn, _ = box_of(clock, up, down)
    reborn.restore([alert(1), alert(2)], facts)
    reborn.deliver_due()
    assert (up.taken, down.taken) == ([], [alert(1).key, alert(2).key])


@pytest.mark.parametrize("killed_before_record", [False, True])
def test_killed_between_deliveries_at_most_one_is_sent_twice(killed_before_record, clock):
    received, facts = [], []

    class Killed(BaseException):
        pass

    def record(fact):
        if killed_before_record and len(received) == 2:
            raise Killed
        facts.append(fact)
        if len(received) == 2:
            raise Killed

    def sink():
        made = Script(name="hook")
        made.taken = received
        return made

    alerts = [alert(k) for k in range(4)]
    box = Outbox([sink()], record, clock, threads=False)
    for one in alerts:
        box.submit(one)
    with pytest.raises(Killed):
        box.deliver_due()
    reborn = Outbox([sink()], facts.append, clock, threads=False)
    reborn.restore(alerts, facts)
    reborn.deliver_due()
    assert set(received) == {a.key for a in alerts}
    assert len(received) == len(alerts) + killed_before_record


def test_a_restart_forgets_what_is_older_than_a_day(clock):
    sink = Script()
    box, _ = box_of(clock, sink)
    box.restore([alert(1, wall_time=clock.now - GIVE_UP - 1), alert(2, wall_time=clock.now - 60)], [])
    box.deliver_due()
    assert sink.taken == [alert(2).key]


def test_a_ledger_that_cannot_be_written_stops_nothing(clock):
    def record(fact):
        raise OSError(28, "No space left on device")

    sink = Script()
    box = Outbox([sink], record, clock, threads=False)
    box.submit(alert(1))
    box.submit(alert(2))
    assert box.deliver_due() is None
    assert len(sink.taken) == 2


def test_two_sinks_of_one_name_are_refused(clock):
    with pytest.raises(ValueError, match="one name"):
        box_of(clock, Script(), Script())


def test_threads_deliver_in_the_background_and_end():
    done = threading.Event()
    sink = Script()
    box = Outbox([sink], lambda fact: done.set())
    box.submit(alert())
    assert done.wait(10)
    box.close()
    assert sink.taken == [alert().key]
    assert not [t for t in threading.enumerate() if t.name.startswith("dse-alerts")]


def test_a_sink_that_hangs_delays_no_other():
    stuck, done, reached = threading.Event(), threading.Event(), threading.Event()

    class Hanging:
        name, least = "hanging", "info"

        def __call__(self, alert):
            reached.set()
            stuck.wait(30)

    box = Outbox([Hanging(), Script(name="quick")], lambda fact: fact["sink"] == "quick" and done.set())
    box.submit(alert())
    assert done.wait(10)
    assert reached.wait(10)
    stuck.set()
    box.close()


def test_closing_delivers_what_was_just_submitted():
    sink = Script()
    box = Outbox([sink], lambda fact: None)
    box.submit(alert())
    box.close(10)
    assert sink.taken == [alert().key]


def test_closing_does_not_wait_for_what_is_due_later():
    tried = threading.Event()

    class Down:
        name, least = "down", "info"

        def __call__(self, alert):
            tried.set()
            raise Retry("down")

    box = Outbox([Down()], lambda fact: None)
    box.submit(alert())
    assert tried.wait(10)
    box.close(10)
    assert box.waiting == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("dse-alerts")]
