"""Noticing that training has diverged, late enough not to stall a GPU and early enough not to save it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dse_monitor.trainers.engine import saving
from dse_monitor.trainers.engine.devices import Later
from dse_monitor.trainers.method import Views
from dse_monitor.trainers.settings import TrainingError


class NonFiniteLoss(TrainingError):
    """The loss became NaN or infinite; the message says when, and where the batch was saved."""


class LossCheck:
    """Looks at each loss once the next one is queued; waiting for the newest would stall a GPU.

    Args:
        out: the run's folder.
        rank: of this process.
    """

    def __init__(self, out: Path, rank: int) -> None:
        self._out, self._rank = out, rank
        self._unchecked: tuple[Tensor, Later, Views] | None = None

    def add(self, loss: Tensor, views: Views) -> None:
        """Remember a loss (scalar, detached) and its views for the next look."""
        self._unchecked = loss, Later(loss.isfinite()), views

    def look(self, step: int) -> None:
        """Look at the loss remembered last, if it was not looked at yet.

        Args:
            step: optimiser steps done.

        Raises:
            NonFiniteLoss: it is not finite; its batch was saved.
        """
        if self._unchecked is None:
            return
        loss, finite, views = self._unchecked
        self._unchecked = None
        if finite.value():
            return
        folder = self._out / "non_finite"
        folder.mkdir(exist_ok=True)
        path = folder / f"batch_step{step:07d}_process{self._rank}.npz"
        arrays = {f"image_{i}": image.float().cpu().numpy() for i, image in enumerate(views.images)}
        extra = {name: value.cpu().numpy() for name, value in views.extra.items()}
        facts: dict[str, Any] = {"loss": float(loss), "step": step, **arrays, **extra}
        np.savez(path, **facts)
        raise NonFiniteLoss(
            f"the loss became {float(loss)} by step {step}; its batch is in {path}. {advice(self._out)}"
        )


def refuse_broken(model: dict[str, Tensor], file: str, step: int, out: Path) -> None:
    """Refuse to save a state dict with tensors that are not finite.

    Raises:
        NonFiniteLoss: there are some.
    """
    broken = [
        name
        for name, value in model.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if broken:
        raise NonFiniteLoss(
            f"{len(broken)} of the network's tensors are not finite after step {step}, the first is "
            f"{broken[0]}; {file} was not saved. {advice(out)}"
        )


def advice(out: Path) -> str:
    """What to do when numbers have gone bad, by which checkpoints there are."""
    kept = saving.numbered(out)
    if not kept:
        return "No checkpoint was saved yet: start again with a lower --lr, or with --precision float32"
    return (
        f"{kept[-1].name} is from before: --resume with --precision float32 goes on from it, --init-from "
        "with a lower --lr and another --out starts anew from its weights"
    )
