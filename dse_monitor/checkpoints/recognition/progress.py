"""How far training had come when a checkpoint was written: epochs and steps done, and where each was read.

What is stored inside beats the name of the file. Everything is turned into counts of what is finished,
because training codes disagree on whether their numbers start at zero. No torch is imported here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dse_monitor.checkpoints.names import NameFacts
from dse_monitor.checkpoints.reading.contents import TensorRef

# In order of precedence; a path leads through nested dictionaries.
EPOCH_FIELDS: tuple[tuple[str, ...], ...] = (
    ("epoch",),
    ("trainer_state", "epoch"),
    ("meta", "epoch"),
    ("classy_state_dict", "phase_idx"),
    ("phase_idx",),
    ("EPOCHS_RUN",),  # pytorch/examples @ 22e5a03, ddp-tutorial-series/multigpu_torchrun.py: the loop's index
    ("epochs_run",),
    ("current_epoch",),  # MIC-DKFZ/nnUNet, nnUNetTrainer.save_checkpoint: the loop's index plus one
    ("state", "epoch"),  # ignite's State and Hugging Face's TrainerState: finished ones
    ("progress", "epoch"),
    ("train_progress", "num_epochs_completed"),  # TorchTNT's Progress
    ("start_epoch",),  # the first epoch after resuming, so as many are finished
    ("last_epoch",),  # the loop's index where a training stores it; a scheduler's own field lies deeper
)
STEP_FIELDS: tuple[tuple[str, ...], ...] = (
    ("global_step",),
    ("trainer_state", "global_step"),
    ("step",),
    ("iteration",),
    ("iter",),
    ("iter_num",),
    ("steps",),
    ("num_updates",),
    ("train_steps",),
    ("meta", "iter"),
    ("state", "global_step"),
    ("state", "step"),
    ("progress", "global_step"),
    ("progress", "step"),
    ("train_state", "step"),  # pytorch/torchtitan, train.py: counted up before the step, saved after it
    ("train_progress", "num_steps_completed"),
)
# Lightning: whether the batch after which it saved was the last of its epoch.
LIGHTNING_BATCHES = ("loops", "fit_loop", "epoch_loop.batch_progress", "is_last_batch")
MAX_COUNTERS = 1000  # step counters of the optimiser that are read; all of them agree in every known trainer
MAX_COUNT = 10**15  # epochs or steps; as many digits as are read of a text
_COUNTED_FROM_ZERO = {"phase_idx", "EPOCHS_RUN", "epochs_run", "last_epoch"}
# Fields that mean the same whatever the layout says of its own `epoch`.
_COUNTS_FINISHED = {"current_epoch", "start_epoch", "num_epochs_completed", "num_steps_completed"}
_PARENTS_OF_FINISHED = {"state", "progress", "train_state"}
SCALAR_TYPES = ("float32", "float64", "int64", "int32")


@dataclass(frozen=True)
class Progress:
    """Epochs and steps done.

    Attributes:
        epoch: finished epochs, or None.
        epoch_source: where it was read and how it was turned into a count.
        step: finished optimiser steps, or None.
        step_source: the same for the step.
        notes: disagreements between the file and its name, in full sentences.
    """

    epoch: float | None = None
    epoch_source: str = ""
    step: int | None = None
    step_source: str = ""
    notes: tuple[str, ...] = ()


def read(
    tree: Any,
    facts: NameFacts,
    *,
    epochs_from_field: int = 0,
    steps_from_field: int = 0,
    scalars: Callable[[Sequence[TensorRef]], Sequence[float]] | None = None,
) -> Progress:
    """Progress of a checkpoint.

    Args:
        tree: the file's contents without its tensors.
        facts: what its name says.
        epochs_from_field: what the layout adds to a stored epoch to get finished ones.
        steps_from_field: what the layout adds to a stored step to get finished ones.
        scalars: reads tensors of one number each; without it, the optimiser's step counters are used only if
            plain.
    """
    fields = tree if isinstance(tree, Mapping) else {}
    notes: list[str] = []
    unfinished = _at(fields, LIGHTNING_BATCHES) is False
    counted = 0 if unfinished or facts.within_epoch else epochs_from_field
    numbers = _Numbers(fields, scalars)
    epoch, epoch_source = _first(numbers, EPOCH_FIELDS, counted)
    if unfinished:
        notes.append("It was saved in the middle of an epoch, which is not counted as finished.")
    step, step_source = _first(numbers, STEP_FIELDS, steps_from_field)
    if step is None:
        step, step_source = _lightning_loops(fields)
    if step is None:
        step, step_source = _optimizer_steps(fields, scalars)

    if facts.epoch_done is not None:
        if epoch is None:
            epoch, epoch_source = facts.epoch_done, facts.how
        elif epoch != facts.epoch_done - unfinished:
            notes.append(
                f"The name says {_number(facts.epoch_done)} finished epochs ({facts.how}), the file says "
                f"{_number(epoch)} ({epoch_source}); the file is believed."
            )
    if facts.step_done is not None:
        if step is None:
            step, step_source = facts.step_done, facts.how
        elif step != facts.step_done:
            notes.append(
                f"The name says {facts.step_done} finished steps ({facts.how}), the file says "
                f"{_number(step)} ({step_source}); the file is believed."
            )
    if facts.number is not None and epoch is None and step is None:
        notes.append(
            f"The file stores no epoch and no step, and its name only a {facts.how}; among other checkpoints "
            "of the run it is found out, or --unit says it."
        )
    return Progress(epoch, epoch_source, None if step is None else int(step), step_source, tuple(notes))


@dataclass(frozen=True)
class _Numbers:
    """Numbers at paths of a checkpoint, also those kept as text or as tensors of one element."""

    fields: Mapping[Any, Any]
    scalars: Callable[[Sequence[TensorRef]], Sequence[float]] | None

    def at(self, path: tuple[str, ...]) -> float | None:
        """A finite number that is not negative; None if there is none."""
        value = _at(self.fields, path)
        if isinstance(value, TensorRef):
            if math.prod(value.shape) != 1 or value.dtype not in SCALAR_TYPES or self.scalars is None:
                return None
            (value,) = self.scalars([value])
        elif isinstance(value, str):
            if not re.fullmatch(r"\s*\d{1,15}(?:\.\d{1,6})?\s*", value, re.ASCII):
                return None
            value = float(value)
        return _plain(value)


def _first(
    numbers: _Numbers, candidates: tuple[tuple[str, ...], ...], offset: int
) -> tuple[float | None, str]:
    for path in candidates:
        value = numbers.at(path)
        if value is None:
            continue
        name = ".".join(path)
        known = path[-1] in _COUNTS_FINISHED or path[0] in _PARENTS_OF_FINISHED
        added = 1 if path[-1] in _COUNTED_FROM_ZERO else 0 if known else offset
        if added:
            return value + added, f"field '{name}' = {_number(value)} (counts from zero)"
        return value, f"field '{name}' = {_number(value)} (counts finished ones)"
    return None, ""


def _number_at(node: Any, path: tuple[str, ...]) -> float | None:
    """A plain non-negative number at `path`; booleans, tensors and strings are none."""
    return _plain(_at(node, path))


def _plain(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value < MAX_COUNT else None


def _at(node: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node


def _lightning_loops(fields: Mapping[Any, Any]) -> tuple[float | None, str]:
    path = ("loops", "fit_loop", "epoch_loop.batch_progress", "total", "completed")
    value = _number_at(fields, path)
    return (None, "") if value is None else (value, f"field '{'.'.join(path)}' (batches completed)")


def _optimizer_steps(
    fields: Mapping[Any, Any], scalars: Callable[[Sequence[TensorRef]], Sequence[float]] | None
) -> tuple[float | None, str]:
    """The largest ``step`` among the optimiser's per-parameter states (Adam and its family)."""
    found = [value for key in ("optimizer", "optimizer_states", "opt") for value in _steps(fields.get(key))]
    counts = [value for value in found if not isinstance(value, TensorRef)]
    kept = [value for value in found if isinstance(value, TensorRef)][:MAX_COUNTERS]
    if not counts and kept and scalars is not None:
        counts = list(scalars(kept))
    counts = [count for count in counts if 0 <= count < MAX_COUNT]
    return (max(counts), "largest 'step' of the optimiser") if counts else (None, "")


def _steps(optimizer: Any) -> Iterator[float | TensorRef]:
    for state_dict in optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]:
        state = state_dict.get("state") if isinstance(state_dict, Mapping) else None
        for entry in state.values() if isinstance(state, Mapping) else ():
            value = entry.get("step") if isinstance(entry, Mapping) else None
            if isinstance(value, TensorRef):
                if not value.shape and value.dtype in SCALAR_TYPES:
                    yield value
            elif (count := _number_at(entry, ("step",))) is not None:
                yield count


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
