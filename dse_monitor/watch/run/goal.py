"""Whether a run has come as far as the watcher was asked to follow it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from dse_monitor.checkpoints.names import NameFacts
from dse_monitor.runs.record import Evaluation


def reached(
    evaluations: Iterable[Evaluation],
    epoch: float | None,
    step: int | None,
    from_name: Callable[[str], NameFacts],
) -> bool:
    """Whether a checkpoint with so many epochs or steps done was dealt with.

    Args:
        evaluations: of the run.
        epoch: epochs done; None if they are not asked for.
        step: the same in steps.
        from_name: what a path says about progress, for checkpoints that say nothing inside.
    """
    return any(
        (epoch is not None and _epochs_done(evaluation, from_name) >= epoch)
        or (step is not None and _steps_done(evaluation, from_name) >= step)
        for evaluation in evaluations
    )


def _epochs_done(evaluation: Evaluation, from_name: Callable[[str], NameFacts]) -> float:
    return _first(evaluation.source.epoch, from_name(evaluation.source.path).epoch_done)


def _steps_done(evaluation: Evaluation, from_name: Callable[[str], NameFacts]) -> float:
    return _first(evaluation.source.step, from_name(evaluation.source.path).step_done)


def _first(inside: float | None, named: float | None) -> float:
    found = inside if inside is not None else named
    return -math.inf if found is None else float(found)
