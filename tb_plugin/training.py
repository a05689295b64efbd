"""Which of TensorBoard's scalars is the training loss of a run, told by names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dse_monitor.runs.record import OUTPUT_FOLDER


def trained_run(run: str) -> str:
    """The run that DSE data belongs to: ``exp1`` for ``exp1/dse``, ``.`` for ``dse``, else the name."""
    if run == OUTPUT_FOLDER:
        return "."
    return run.removesuffix(f"/{OUTPUT_FOLDER}")


def scalar_sources(run: str, every: Iterable[str]) -> list[list[str]]:
    """Groups of runs in which a run's training scalars may lie, the likeliest first.

    The run itself and then its ancestors one by one, the runs below it, and last the DSE data's own run.
    """
    trained = trained_run(run)
    existing = set(every)
    below = sorted(name for name in existing if trained == "." or name.startswith(f"{trained}/"))
    below = [name for name in below if name != run and name.split("/")[-1] != OUTPUT_FOLDER]
    groups = [[trained], below]
    parts = trained.split("/")
    groups += [["/".join(parts[:count])] for count in range(len(parts) - 1, 0, -1)]
    groups += [["."], [run]]
    seen: set[str] = set()
    chosen = []
    for group in groups:
        names = [name for name in group if name in existing and name not in seen]
        seen.update(names)
        if names:
            chosen.append(names)
    return chosen


LOSS_TAGS = (
    "train/loss",
    "train_loss",
    "loss",
    "loss/train",
    "train_loss_step",
    "train/loss_step",
    "train_loss_epoch",
    "train/loss_epoch",
    "training_loss",
    "total_loss",
    "train/total_loss",
)  # names under which common trainers log their loss, the likeliest first
_HELD_OUT = re.compile(r"(^|[/_.\-\s])(val|valid|validation|eval|test|dev)([/_.\-\s]|$)", re.IGNORECASE)
_LOSS = re.compile(r"loss|objective|nll", re.IGNORECASE)


def loss_score(tag: str) -> int:
    """How likely a scalar is the training loss: 100 downwards for known names, 60 or 50 for a telling one."""
    if tag.lower() in LOSS_TAGS:
        return 100 - LOSS_TAGS.index(tag.lower())
    if _HELD_OUT.search(tag):
        return 10 if _LOSS.search(tag) else 0
    if not _LOSS.search(tag):
        return 0
    return 60 if _LOSS.search(tag.split("/")[-1]) else 50
