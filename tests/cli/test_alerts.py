"""silence and replay."""

import json

import pytest

pytestmark = pytest.mark.fast


def requests(run):
    return set((run / "dse").glob("requests/*"))


def test_a_silence_is_left_for_the_watcher(command, old_run):
    before = requests(old_run)
    done = command("silence", old_run, "--rule", "degradation", "--during", "6h")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{old_run}: degradation alerts are silent for 6h\n"
    [left] = requests(old_run) - before
    asked = json.loads(left.read_text())
    assert (asked["rule"], asked["until"] - asked["since"]) == ("degradation", 6 * 3600)


def test_a_silence_is_taken_back(command, old_run):
    assert command("silence", old_run, "--off").out == f"{old_run}: alerts will be reported again\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--during", "soon"], "--during 'soon' is not a duration; expected such as 30min, 6h or 2d"),
        (["--during", "6h", "--off"], "--off takes a silence back, so it goes without --during"),
    ],
)
def test_what_is_not_a_silence_is_refused(command, old_run, flags, said):
    before = requests(old_run)
    done = command("silence", old_run, *flags)
    assert (done.code, done.err) == (2, f"dse-monitor: {said}\n")
    assert requests(old_run) == before


def test_replay_reports_what_the_rules_would_have(command, old_run):
    replayed = json.loads(command("replay", old_run, "--json").out)
    assert set(replayed) >= {"alerts", "best", "candidates"}
    assert command("replay", old_run, "--rules.margin", 2).err.startswith("dse-monitor: margin is a share")
