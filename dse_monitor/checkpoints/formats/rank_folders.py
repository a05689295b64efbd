"""Folders with a file per rank (DeepSpeed, Megatron): readable when one rank holds the whole network."""

from __future__ import annotations

import re
from pathlib import Path

from dse_monitor.errors import CheckpointError, IncompleteCheckpoint

DEEPSPEED_FILE = re.compile(r"(zero_pp_rank_\d+_)?mp_rank_(\d+)_model_states\.pt")
MEGATRON_FILES = ("model_optim_rng.pt", "model_rng.pt")
_NUMBER = re.compile(r"(\d+)$")


def deepspeed_files(folder: Path) -> list[Path]:
    """The model files of a DeepSpeed folder."""
    return sorted(path for path in folder.glob("*_model_states.pt") if DEEPSPEED_FILE.fullmatch(path.name))


def megatron_files(folder: Path) -> list[Path]:
    """The model files of a Megatron folder."""
    return sorted(path for path in folder.glob("mp_rank_*/*.pt") if path.name in MEGATRON_FILES)


def whole_file(folder: Path, files: list[Path], kind: str) -> Path:
    """The one file that holds the whole network.

    Raises:
        CheckpointError: the network is spread over ranks; the text says how to join it.
    """
    if len(files) == 1 and not files[0].name.startswith("zero_pp_rank_"):
        return files[0]
    if kind == "DeepSpeed":
        advice = (
            "join them once with the script DeepSpeed left beside the folder: python zero_to_fp32.py . OUTPUT"
        )
    else:
        advice = "join them once with Megatron's checkpoint converter (tensor and pipeline parallel size 1)"
    spread = (
        "partitioned parameters (ZeRO stage 3)"
        if files[0].name.startswith("zero_pp_rank_")
        else "parts of the network"
    )
    raise CheckpointError(
        f"{folder} ({kind}) holds {spread} in {len(files)} rank files, expected one file with the whole "
        f"network; {advice}"
    )


def finished(folder: Path, kind: str) -> bool:
    """Whether the run's marker names this folder or a later one; False when there is no marker to tell.

    Raises:
        IncompleteCheckpoint: the marker names an earlier folder.
    """
    name = "latest" if kind == "DeepSpeed" else "latest_checkpointed_iteration.txt"
    marker = folder.parent / name
    try:
        with marker.open("rb") as file:
            said = file.read(256).decode("utf-8", "replace").strip()
    except OSError:
        return False
    here, there = _NUMBER.search(folder.name), _NUMBER.search(said)
    if said == folder.name or said == "release" or (here and there and int(there[1]) >= int(here[1])):
        return True
    raise IncompleteCheckpoint(
        f"{folder} ({kind}) is not finished: {marker.name} still names {said!r:.80}; its ranks are writing"
    )
