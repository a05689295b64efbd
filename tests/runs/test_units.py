"""What bare numbers in names count: decided for a run, from all that is known of it."""

import math

import pytest

from dse_monitor.runs import ledger, units
from dse_monitor.runs.ledger import Ledger
from dse_monitor.runs.units import Decision, Numbered, decide

pytestmark = pytest.mark.fast


def _numbers(*numbers, seconds=math.nan, **facts):
    """Checkpoints whose files were written so many seconds per count apart."""
    return [Numbered(number, 1e9 + number * seconds, **facts) for number in numbers]


CASES = {
    "small numbers": (_numbers(1, 2, 3), {}, "epoch"),
    "a large one": (_numbers(7000), {}, "step"),
    "multiples": (_numbers(500, 1000, 1500), {}, "step"),
    "one round number": (_numbers(100), {}, "epoch"),
    "epochs of an hour": (_numbers(100, 200, 300, seconds=3600.0), {}, "epoch"),
    "steps of a second": (_numbers(500, 1000, seconds=1.0), {}, "step"),
    "copied files": ([Numbered(n, 1e9) for n in (500, 1000)], {}, "step"),
    "equal to the stored step": (_numbers(7, step=7), {}, "step"),
    "equal to the stored epoch": (_numbers(7000, epoch=7000.0, step=90000), {}, "epoch"),
    "one less than the stored epoch": (_numbers(6, epoch=7.0, step=70), {}, "epoch"),
    "other names count epochs": (_numbers(5000, 10000), {"said": ["epoch", "epoch"]}, "epoch"),
    "other names count steps": (_numbers(1, 2), {"said": ["step"]}, "step"),
    "event files far ahead": (_numbers(1, 2, 30), {"largest_step": 70_000}, "epoch"),
    "event files at the same count": (_numbers(5000), {"largest_step": 5000}, "step"),
    "nothing at all": ([], {}, "epoch"),
}


@pytest.mark.parametrize("case", CASES)
def test_all_evidence_is_weighed(case):
    numbered, more, unit = CASES[case]
    decision = decide(numbered, **more)
    assert decision.unit == unit
    assert decision.why


def test_what_is_stored_weighs_more_than_anything_else():
    numbered = [*_numbers(500, 1000, 1500, seconds=3600.0), Numbered(2000, step=2000)]
    assert decide(numbered, ["epoch"], 10**6) == Decision(
        "step", "the step stored in the file is the same", True
    )


def test_only_what_is_unknown_is_filled(evaluation):
    plain = evaluation("model_7.pt", epoch=None)
    taken = units.with_number(plain, 7, Decision("epoch", "nothing says otherwise"))
    assert (taken.source.epoch, taken.source.step) == (7.0, None)
    assert taken.source.epoch_source == "number 7 in the name, taken as epochs: nothing says otherwise"
    stored = evaluation("model_7.pt", epoch=3.0)
    assert units.with_number(stored, 7, Decision("epoch", "x")) == stored
    both = units.with_number(stored, 7, Decision("step", "x"))
    assert (both.source.epoch, both.source.step) == (3.0, 7)


def test_the_newest_unit_in_a_ledger_holds_for_every_record(tmp_path, evaluation):
    written = Ledger.open(tmp_path)
    first = units.with_number(evaluation("model_700.pt", epoch=None, seq=1), 700, Decision("epoch", "x"))
    written.append("unit", {"unit": "epoch", "why": "x", "firm": False})
    written.append_evaluation(first, {})
    assert [e.source.epoch for e in ledger.read(tmp_path).evaluations] == [700.0]
    written.append("unit", {"unit": "step", "why": "y", "firm": True})
    second = units.with_number(evaluation("model_800.pt", epoch=None, seq=2), 800, Decision("step", "y"))
    written.append_evaluation(second, {})
    assert written.unit()["unit"] == "step"
    written.close()
    sources = [e.source for e in ledger.read(tmp_path).evaluations]
    assert [(source.epoch, source.step) for source in sources] == [(None, 700), (None, 800)]
    assert [source.step_source.partition(":")[0] for source in sources] == [
        "number 700 in the name, taken as steps",
        "number 800 in the name, taken as steps",
    ]


def test_a_stored_count_never_changes_its_unit(evaluation):
    stored = evaluation("model_7.pt", epoch=3.0, step=30)
    assert units.in_unit(stored, "step") == units.in_unit(stored, "epoch") == stored
