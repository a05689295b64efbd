"""What a run is asked to do, apart from the method's own numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dse_monitor.flags import ADVANCED, Flag

LEAST = {
    **dict.fromkeys(("scenes", "accumulate", "save_every", "log_every", "dse_every"), 1),
    **dict.fromkeys(("seed", "keep", "max_steps", "more_epochs", "dse_weight"), 0),
    "workers": -1,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of a run. The numbers of the method are in its recipe."""

    data: Annotated[str, Flag(metavar="DIR")]
    """A folder of images (searched recursively; labels are ignored), or `scenes` for the built-in ones."""
    out: Annotated[Path, Flag(metavar="RUN")]
    """Folder for checkpoints and TensorBoard events."""
    device: Annotated[str, Flag(metavar="DEVICE")] = "auto"
    """Where to train: auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Fixes initialisation, data order, augmentations and everything else that is random."""
    save_every: Annotated[int, Flag(metavar="EPOCHS")] = 1
    """Epochs between checkpoints."""
    keep: Annotated[int, Flag(metavar="COUNT")] = 0
    """How many checkpoints to keep; 0 keeps all."""
    max_steps: Annotated[int, Flag(metavar="STEPS")] = 0
    """Stop after so many optimiser steps, those of a run that this one goes on from included; 0 runs the
    recipe's epochs."""
    resume: bool = False
    """Go on from the newest checkpoint in RUN."""
    init_from: Annotated[Path | None, Flag(metavar="CKPT|RUN", default="random weights")] = None
    """Start from the weights of this checkpoint, or of the best one by DSE of this run's folder (optimiser,
    schedules and counters start anew). With --resume: only where --out has no checkpoint yet, so that one
    command starts a run and goes on with it."""
    more_epochs: Annotated[int, Flag(metavar="EPOCHS")] = 0
    """With --init-from: also take over optimiser, schedules and counters, and train so many epochs more;
    schedules that end before keep their last values. 0 starts anew."""
    dse_weight: Annotated[float, Flag(metavar="BETA")] = 0.0
    """Weight of the DSE term in the loss; 0 is off."""
    dse_every: Annotated[int, Flag(metavar="STEPS", advanced=True)] = 1
    """Optimiser steps between two DSE terms."""
    dse_from: Annotated[float | Literal["best"], Flag(metavar="EPOCH|best", advanced=True)] = 0.0
    """Epochs done before the DSE term begins; `best`: at the checkpoint of --init-from."""
    scenes: Annotated[int, Flag(metavar="COUNT", advanced=True)] = 500
    """How many built-in scenes there are."""
    precision: Annotated[Literal["auto", "float32", "bfloat16", "float16"], ADVANCED] = "auto"
    """Arithmetic of the forward pass; auto is bfloat16 on GPUs that have it, else float32."""
    accumulate: Annotated[int, Flag(metavar="COUNT", advanced=True)] = 1
    """Micro-batches per optimiser step."""
    workers: Annotated[int, Flag(metavar="COUNT", advanced=True)] = -1
    """Loader processes per training process; -1 chooses."""
    compile: Annotated[bool, ADVANCED] = False
    """Compile the networks' blocks with torch.compile."""
    parallel: Annotated[Literal["auto", "ddp", "fsdp"], ADVANCED] = "auto"
    """How several processes share a network: ddp copies it, fsdp spreads it (transformers only), auto spreads
    backbones of ViT-L's size and above on GPUs."""
    channels_last: Annotated[bool, ADVANCED] = True
    """Use channels-last memory for convolutional networks."""
    checkpointing: Annotated[bool, ADVANCED] = False
    """Recompute activations in the backward pass to save memory."""
    deterministic: Annotated[bool, ADVANCED] = False
    """Use only deterministic kernels, at some speed."""
    log_every: Annotated[int, Flag(metavar="STEPS", advanced=True)] = 10
    """Optimiser steps between log entries."""

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


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a network with a self-supervised method.

    `dse-train` and `dse-monitor train` are the same. `METHOD --help` lists every number of the method's
    recipe beside the flags below. Several GPUs: torchrun --nproc-per-node N -m dse_monitor train METHOD ...

    Exit codes: 0 trained to the end, 1 an error, 2 flags that cannot be read, 143 stopped by SIGTERM and 130
    by Ctrl-C, both after saving: the same command with --resume goes on from there.

    Examples:
        dse-train dino --data ~/data/images --out runs/exp1
        dse-train dino --preset tiny --data scenes --out runs/tiny
    """

    method: Annotated[str, Flag(positional=True, metavar="METHOD")]
    """One of those listed below."""
    settings: Settings
    """The flags of the run."""
    preset: Annotated[str, Flag(metavar="NAME")] = "official"
    """Recipe whose numbers are the defaults: official (the authors'), tiny (64-px images, a minute or so on a
    CPU), or another of the method's own."""


class TrainingError(Exception):
    """A run cannot start or go on; the text says what was found, what was expected and what to do."""
