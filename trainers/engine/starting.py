"""How a run begins: with new weights, where it stopped, or from the checkpoint of another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dse_monitor.metric import DSERegularizer
from dse_monitor.trainers import distributed
from dse_monitor.trainers.engine import saving
from dse_monitor.trainers.method import Method, Plan
from dse_monitor.trainers.settings import Settings, TrainingError


@dataclass(frozen=True)
class Trained:
    """What a checkpoint carries on: each part is filled in place.

    Attributes:
        name: of the method.
        method: unwrapped.
        optimizer: its optimiser.
        scaler: gradient scaler, perhaps disabled.
        regularizer: the DSE term, if the run has one.
    """

    name: str
    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    regularizer: DSERegularizer | None


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        origin: what was done, in words.
        step: optimiser steps done.
        first_step: those of them that another run did.
    """

    origin: str
    step: int = 0
    first_step: int = 0


def start(trained: Trained, settings: Settings, plan: Plan, device: torch.device) -> Start:
    """Fill in what the run begins with; every process calls it.

    Raises:
        TrainingError: ``out`` holds another run, or what is to be resumed or taken over does not fit.
    """
    out = settings.out
    if not settings.resume and (saving.numbered(out) or (out / saving.LAST).exists()):
        raise TrainingError(
            f"{out} holds checkpoints of another run: --resume goes on with it, "
            "another --out starts a new one"
        )
    passed_over: list[str] = []
    found = None
    if settings.resume:
        found = saving.newest(out, passed_over)
        _agree_on(found, out, device)
    if found is not None:
        path, content = found
        return _resume(trained, settings, plan, path, content, passed_over)
    if settings.init_from:
        return _take_over(trained, settings, plan, settings.init_from)
    return _start_fresh(settings)


def facts(settings: Settings, plan: Plan) -> dict[str, Any]:
    """What a resumed run must share with the one it continues, besides the recipe."""
    return {
        "seed": settings.seed,
        "images": plan.images,
        "steps_per_epoch": plan.steps_per_epoch,
        "accumulate": settings.accumulate,
        "processes": plan.world_size,
    }


def habits(settings: Settings) -> dict[str, Any]:
    """What a resumed run may change, and should know that it does."""
    names = ("data", "precision", "dse_weight", "dse_every", "dse_from", "more_epochs")
    return {name: getattr(settings, name) for name in names}


def _start_fresh(settings: Settings) -> Start:
    """New weights, which are there already."""
    if settings.more_epochs or settings.dse_from == "best":
        flag = "--more-epochs" if settings.more_epochs else "--dse-from best"
        raise TrainingError(f"{settings.out} has no checkpoint to resume, and {flag} needs one")
    return Start("new weights (nothing to resume)" if settings.resume else "new weights")


def _take_over(trained: Trained, settings: Settings, plan: Plan, source: Path) -> Start:
    """Begin with another run's weights, or go on from where it was with its optimiser and schedules."""
    path = saving.best(source) if source.is_dir() else source
    name, method = trained.name, trained.method
    if not settings.more_epochs:
        epochs = saving.start_from(path, name, method)
        return Start(f"weights of {path} ({epochs} epochs)")
    step = saving.go_on_from(path, name, method, trained.optimizer, trained.scaler, plan.steps_per_epoch)
    return Start(f"{path}, step {step}, {settings.more_epochs} epochs more", step, step)


def _resume(
    trained: Trained,
    settings: Settings,
    plan: Plan,
    path: Path,
    content: dict[str, Any],
    passed_over: Sequence[str],
) -> Start:
    """Go on with this run; what is unusual about that is part of the origin."""
    name, method = trained.name, trained.method
    saving.restore(content, path, name, method, trained.optimizer, trained.scaler, facts(settings, plan))
    if trained.regularizer is not None and content["regularizer"] is not None:
        trained.regularizer.set_extra_state(content["regularizer"][plan.rank])
    step = content["step"]
    before = content["run"]
    changed = [
        f"{key} {before[key]} -> {value}"
        for key, value in habits(settings).items()
        if before.get(key, value) != value
    ]
    notes = [f"other settings than before: {', '.join(changed)}"] if changed else []
    origin = "; ".join([f"{path.name}, step {step}", *passed_over, *notes])
    return Start(origin, step, content.get("first_step", 0))


def _agree_on(found: tuple[Path, dict[str, Any]] | None, out: Path, device: torch.device) -> None:
    """Processes that resume must have found the same step: their folders may be different ones."""
    step = -1 if found is None else found[1]["step"]
    steps = distributed.gather(torch.tensor([step], device=device)).tolist()
    if len(set(steps)) > 1:
        said = ", ".join("nothing" if one < 0 else f"step {one}" for one in steps)
        raise TrainingError(
            f"the processes found different checkpoints in {out} ({said}, by rank): --out "
            "must be one folder that all of them see"
        )
