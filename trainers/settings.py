"""What a run is asked to do, apart from the method's own numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LEAST = {
    **dict.fromkeys(("scenes", "accumulate", "save_every", "log_every", "dse_every"), 1),
    **dict.fromkeys(("seed", "keep", "max_steps", "more_epochs", "dse_weight"), 0),
    "workers": -1,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of a run. The numbers of the method are in its recipe.

    Attributes:
        data: a folder of images (searched recursively; labels are ignored), or ``scenes`` for the built-in
        ones. out: folder for checkpoints and TensorBoard events.
        scenes: how many built-in scenes there are.
        seed: fixes initialisation, data order, augmentations and everything else that is random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: arithmetic of the forward pass; ``auto`` is bfloat16 on GPUs that have it, else float32.
        accumulate: micro-batches per optimiser step.
        workers: loader processes per training process; ``-1`` chooses.
        compile: compile the networks' blocks with torch.compile.
        parallel: how several processes share a network: ``ddp`` copies it, ``fsdp`` spreads it (transformers
            only), ``auto`` spreads backbones of ViT-L's size and above on GPUs.
        channels_last: channels-last memory for convolutional networks.
        checkpointing: recompute activations in the backward pass to save memory.
        deterministic: only deterministic kernels, at some speed.
        save_every: epochs between checkpoints.
        keep: how many checkpoints to keep; 0 keeps all.
        max_steps: stop after so many optimiser steps, those of a run that this one goes on from included; 0
            runs the recipe's epochs.
        log_every: optimiser steps between log entries.
        resume: go on from the newest checkpoint in ``out``.
        init_from: start from the weights of this checkpoint, or of the best one by DSE of this run's folder
            (optimiser, schedules and counters start anew). With ``resume``: only where ``out`` has no
            checkpoint yet, so that one command starts a run and goes on with it.
        more_epochs: with ``init_from``: also take over optimiser, schedules and counters, and train so many
            epochs more; schedules that end before keep their last values. 0 starts anew.
        dse_weight: beta of the DSE term; 0 is off.
        dse_every: optimiser steps between two DSE terms.
        dse_from: epochs done before the DSE term begins; ``best``: at the checkpoint of ``init_from``.
    """

    data: str
    out: Path
    scenes: int = 500
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    accumulate: int = 1
    workers: int = -1
    compile: bool = False
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    channels_last: bool = True
    checkpointing: bool = False
    deterministic: bool = False
    save_every: int = 1
    keep: int = 0
    max_steps: int = 0
    log_every: int = 10
    resume: bool = False
    init_from: Path | None = None
    more_epochs: int = 0
    dse_weight: float = 0.0
    dse_every: int = 1
    dse_from: float | Literal["best"] = 0.0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if not getattr(self, name) >= least:
                flag = name.replace("_", "-")
                raise TrainingError(f"--{flag} is at least {least}, got {getattr(self, name)}")
        if not self.data.strip():
            raise TrainingError("--data is empty: give a folder of images, or 'scenes'")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise TrainingError(f"--device {self.device!r}: expected auto, cpu, cuda or cuda:N")
        # a shell leaves the tilde of --out=~/run alone
        object.__setattr__(self, "out", self.out.expanduser())
        if self.init_from is not None:
            object.__setattr__(self, "init_from", self.init_from.expanduser())
        if not (self.init_from or self.resume) and (self.more_epochs or self.dse_from == "best"):
            flag = "--more-epochs" if self.more_epochs else "--dse-from best"
            raise TrainingError(
                f"{flag} needs --init-from: the checkpoint, or the watched run, to go on from"
            )


class TrainingError(Exception):
    """A run cannot start or go on; the text says what was found, what was expected and what to do."""
