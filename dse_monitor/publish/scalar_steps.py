"""The step of a checkpoint in TensorBoard's own tab, which draws whole numbers only.

It is the optimiser step where the file states one. Else it is what the epoch is worth: that many steps
where other checkpoints of the run state both (series and tab say how many make an epoch), the steps of the
newest that is not later where they leave that open, and the epoch itself where none states a step. Where
neither is known it is how many were measured. A number that another checkpoint has is followed by the next
free one, so no two of a run fall on one point; the DSE tab and the tables hold the true places.
"""

from __future__ import annotations

from array import array

import numpy as np

from dse_monitor.runs.order import steps_per_epoch
from dse_monitor.runs.record import Evaluation, Source


class ScalarSteps:
    """Gives each checkpoint of a run its step: the same to all who ask in the order of measuring."""

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}  # of each step: the version of a name at a place
        self._epochs, self._steps = array("d"), array("d")  # of those that state both
        self._stated = False
        self._count = 0

    def next(self, evaluation: Evaluation) -> int:
        """The step of an evaluation that was scored."""
        source = evaluation.source
        self._count += 1
        self._stated |= source.step is not None
        if source.step is not None and source.epoch is not None:
            self._epochs.append(source.epoch)
            self._steps.append(source.step)
        step, owner = self._wanted(source), hash((source.path, source.epoch, source.step))
        while self._owners.setdefault(step, owner) != owner:
            step += 1
        return step

    def _wanted(self, source: Source) -> int:
        if source.step is not None:
            return source.step
        if source.epoch is None:
            return self._count
        if not self._stated:
            return round(source.epoch)
        epochs, steps = np.array(self._epochs), np.array(self._steps)
        per_epoch = steps_per_epoch(epochs, steps)
        if per_epoch is not None:
            return round(source.epoch * per_epoch)
        return int(steps[epochs <= source.epoch].max(initial=0.0))
