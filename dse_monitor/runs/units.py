"""What bare numbers in the names of one run's checkpoints count: epochs or steps.

`model_7.pt` does not say. The unit is decided for a run as a whole, from all that is known of it, so one run
never mixes units; a `unit` fact in its ledger holds the decision, the newest counts, and whoever reads the
ledger sees every such number in that unit.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dse_monitor.runs.record import Evaluation

Unit = Literal["epoch", "step"]

SLOW_SECONDS = 30.0  # s per count from which no step takes so long; chosen by us
FAST_SECONDS = 2.0  # s per count up to which no epoch of a real training is so short; chosen by us
COARSE = 100  # counts that are all multiples of so many, or more, are mostly steps; chosen by us
LARGE = 2000  # no training known to us counts so many epochs
FAR_AHEAD = 20  # times a number, from which the steps of event files show that it counts epochs; chosen by us
_MARK = " in the name, taken as "


@dataclass(frozen=True)
class Decision:
    """What the numbers count.

    Attributes:
        unit: epochs or steps.
        why: in words.
        firm: whether more checkpoints can change it no more.
    """

    unit: Unit
    why: str
    firm: bool = False


@dataclass(frozen=True)
class Numbered:
    """A checkpoint whose name ends in a bare number.

    Attributes:
        number: the number.
        mtime: modification time of the file, seconds since 1970; NaN if unknown.
        epoch: what the file itself says, or None.
        step: the same.
    """

    number: int
    mtime: float = math.nan
    epoch: float | None = None
    step: float | None = None


def decide(numbered: Sequence[Numbered], said: Iterable[str] = (), largest_step: int = 0) -> Decision:
    """What the numbers of one run count.

    Args:
        numbered: its checkpoints with bare numbers, in any order.
        said: the unit in each other name of the run: ``epoch``, ``step`` or ``both``.
        largest_step: largest step in the run's event files; 0 if there are none.
    """
    stored = Counter(_matches(item) for item in numbered)
    if stored["epoch"] != stored["step"]:
        unit: Unit = "epoch" if stored["epoch"] > stored["step"] else "step"
        return Decision(unit, f"the {unit} stored in the file is the same", firm=True)
    other = set(said)
    if other == {"epoch"} or other == {"step"}:
        return Decision("epoch" if "epoch" in other else "step", "other names of this run say so", firm=True)
    numbers = sorted({item.number for item in numbered})
    if largest_step and numbers and largest_step >= FAR_AHEAD * max(numbers[-1], 1):
        return Decision("epoch", f"event files of this run count to {largest_step:,} steps", firm=True)
    pace = _seconds_per_count(numbered)
    if pace >= SLOW_SECONDS:
        return Decision("epoch", f"one takes {pace:.0f} s by the times of the files", firm=True)
    return _by_size(numbers, pace)


def _by_size(numbers: list[int], pace: float) -> Decision:
    if numbers and numbers[-1] >= LARGE:
        return Decision("step", f"they reach {numbers[-1]:,}")
    step = math.gcd(*numbers)
    if len([number for number in numbers if number]) > 1 and step >= COARSE:
        return Decision("step", f"all are multiples of {step}", firm=pace <= FAST_SECONDS)
    return Decision("epoch", "nothing says otherwise")


def _matches(item: Numbered) -> str:
    """The stored count that a number is, give or take one; empty if neither or both are."""
    near = [
        name
        for name, stored in (("epoch", item.epoch), ("step", item.step))
        if stored is not None and abs(stored - item.number) <= 1
    ]
    return near[0] if len(near) == 1 else ""


def _seconds_per_count(numbered: Sequence[Numbered]) -> float:
    """Median time per count between files; NaN where times do not grow with the numbers, as after copying."""
    known = sorted((item.number, item.mtime) for item in numbered if math.isfinite(item.mtime))
    paces = []
    for (number, time), (next_number, next_time) in itertools.pairwise(known):
        if next_number > number:
            if next_time <= time:
                return math.nan
            paces.append((next_time - time) / (next_number - number))
    return sorted(paces)[len(paces) // 2] if paces else math.nan


def with_number(evaluation: Evaluation, number: int, decision: Decision) -> Evaluation:
    """An evaluation whose name holds a bare number, with that as its epoch or step unless it has one."""
    source = evaluation.source
    words = f"number {number}{_MARK}{decision.unit}s: {decision.why}"
    if decision.unit == "epoch" and source.epoch is None:
        source = dataclasses.replace(source, epoch=float(number), epoch_source=words)
    elif decision.unit == "step" and source.step is None:
        source = dataclasses.replace(source, step=number, step_source=words)
    else:
        return evaluation
    return dataclasses.replace(evaluation, source=source)


def in_unit(evaluation: Evaluation, unit: str) -> Evaluation:
    """A recorded evaluation with the bare number of its name in this unit, whatever it was taken for then."""
    source = evaluation.source
    if unit == "step" and _MARK in source.epoch_source:
        number, words = source.epoch, source.epoch_source.partition(_MARK)[0]
        source = dataclasses.replace(source, epoch=None, epoch_source="")
        if source.step is None and number is not None:
            source = dataclasses.replace(source, step=int(number), step_source=f"{words}{_MARK}steps")
    elif unit == "epoch" and _MARK in source.step_source:
        number, words = source.step, source.step_source.partition(_MARK)[0]
        source = dataclasses.replace(source, step=None, step_source="")
        if source.epoch is None and number is not None:
            source = dataclasses.replace(source, epoch=float(number), epoch_source=f"{words}{_MARK}epochs")
    else:
        return evaluation
    return dataclasses.replace(evaluation, source=source)
