"""Files that training codes write beside their checkpoints, which say what the network is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dse_monitor.checkpoints.reading.byte_source import ByteSource
from dse_monitor.checkpoints.reading.plain_json import read_json_file
from dse_monitor.errors import CheckpointError

SOLO_LEARN = "args.json"  # solo-learn's, in the folder of its checkpoints
OPEN_CLIP = "params.txt"  # open_clip's training, in the folder above `checkpoints`
PREPROCESSOR = (
    "preprocessor_config.json"  # transformers' Trainer, also in the run's folder above checkpoint-N
)
MAX_TEXT = 1 << 20  # bytes


def beside(path: Path, notes: list[str]) -> dict[str, Any]:
    """What such files say, by their name; one that is damaged is noted and left out.

    Args:
        path: the checkpoint.
        notes: get a sentence for each that cannot be read.
    """
    wanted: list[tuple[Path, Callable[[Path], Any]]] = [(path.parent / SOLO_LEARN, read_json_file)]
    if path.parent.name == "checkpoints":
        wanted.append((path.parent.parent / OPEN_CLIP, _lines))
    return _read(wanted, notes)


def above(folder: Path, notes: list[str]) -> dict[str, Any]:
    """The same for a folder of transformers: what its run keeps once for all checkpoints."""
    if not folder.name.startswith("checkpoint-"):
        return {}
    return _read([(folder.parent / PREPROCESSOR, read_json_file)], notes)


def _read(wanted: list[tuple[Path, Callable[[Path], Any]]], notes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file, reader in wanted:
        if not file.is_file():
            continue
        try:
            found[file.name] = reader(file)
        except CheckpointError as error:
            notes.append(str(error))
    return found


def _lines(file: Path) -> dict[str, str]:
    """``name: value`` lines; of a longer file the beginning."""
    source = ByteSource(file)
    text = bytes(source.read(0, min(source.size, MAX_TEXT))).decode("utf-8", "replace")
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}
