"""Is a checkpoint whole? The format's own end decides, not the clock; cheap enough to ask at every scan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dse_monitor.checkpoints.formats.containers import (
    DEEPSPEED,
    DISTRIBUTED,
    HUGGING_FACE,
    MEGATRON,
    SAFETENSORS,
    TORCH_LEGACY,
    TORCH_ZIP,
    file_kind,
    no_checkpoint,
)
from dse_monitor.checkpoints.formats.distributed import is_distributed, read_distributed
from dse_monitor.checkpoints.formats.foreign import check_foreign, foreign_folder, refusal
from dse_monitor.checkpoints.formats.hugging_face import shards, weights_of
from dse_monitor.checkpoints.formats.rank_folders import deepspeed_files, finished, megatron_files
from dse_monitor.checkpoints.formats.safetensors_file import read_safetensors
from dse_monitor.checkpoints.formats.torch_legacy import read_torch_legacy
from dse_monitor.checkpoints.reading.byte_source import ByteSource
from dse_monitor.checkpoints.reading.plain_json import read_json_file
from dse_monitor.checkpoints.reading.zip_directory import read_directory
from dse_monitor.errors import CheckpointError, CorruptCheckpoint, IncompleteCheckpoint


@dataclass(frozen=True)
class Completeness:
    """Whether a file or folder holds a finished checkpoint.

    Attributes:
        whole: True when nothing is missing (the content may still be refused on opening, for good).
        container: kind of file; "" when not recognised.
        reason: what is missing, or what was found instead; "" otherwise.
        has_end_marker: whether the format itself says where it ends; without it only time tells.
    """

    whole: bool
    container: str
    reason: str
    has_end_marker: bool


def check_complete(path: Path) -> Completeness:
    """Whether a checkpoint is whole, without reading its tensors. Never raises for what it finds.

    A file that is whole but refused (another framework's, unsafe, of unknown kind) counts as whole: waiting
    would not change it, and opening it says what is wrong.
    """
    path = Path(path)
    if path.is_dir():
        return _check_folder(path)
    kind = ""
    try:
        source = ByteSource(path)
        kind, refused = file_kind(source)
        if refused is not None:
            check_foreign(source, kind)
            return Completeness(True, kind, str(refused), kind == "HDF5")
        _check_file(source, kind)
    except IncompleteCheckpoint as error:
        return Completeness(False, kind, str(error), False)
    except CheckpointError as error:
        # A zip with two copies of an end, a header that is no JSON: a writer at work can look like that.
        return Completeness(not isinstance(error, CorruptCheckpoint), kind, str(error), False)
    return Completeness(True, kind, "", True)


def _check_file(source: ByteSource, kind: str) -> None:
    if kind == TORCH_ZIP:
        with source.open() as descriptor:
            read_directory(descriptor, source, 0, source.size)
    elif kind == TORCH_LEGACY:
        read_torch_legacy(source)
    elif kind == SAFETENSORS:
        read_safetensors(source)
    else:
        _check_shards(source.path)


def _check_shards(index: Path) -> None:
    for shard in shards(index)[1]:
        source = ByteSource(shard)
        kind, refused = file_kind(source)
        if refused is not None:
            raise refused
        _check_file(source, kind)


def _check_folder(path: Path) -> Completeness:
    kind = ""
    marked = True
    try:
        kind = foreign_folder(path)
        if kind:
            if ".orbax-checkpoint-tmp" in path.name:
                raise IncompleteCheckpoint(
                    f"{path} is Orbax's temporary folder; it is renamed when it is finished"
                )
            return Completeness(True, kind, str(refusal(path, kind)), False)
        if is_distributed(path):
            kind = DISTRIBUTED
            read_distributed(path, values=False)
            return Completeness(True, kind, "", True)
        for kind, files in ((DEEPSPEED, deepspeed_files(path)), (MEGATRON, megatron_files(path))):
            if files:
                marked = finished(path, kind)
                return _check_files(files, kind, marked)
        kind = HUGGING_FACE
        weights = weights_of(path)
        if weights is None:
            files = sorted(path.glob("*.safetensors"))
            return (
                _check_files(files, kind, False)
                if files
                else Completeness(False, "", str(no_checkpoint(path)), False)
            )
        is_trainer = (path / "training_args.bin").exists() or re.fullmatch(r"checkpoint-\d+", path.name)
        if is_trainer and not (path / "trainer_state.json").is_file():
            raise IncompleteCheckpoint(
                f"{path} (Hugging Face Trainer) has no trainer_state.json yet, which is written last"
            )
        if (path / "trainer_state.json").is_file():
            read_json_file(path / "trainer_state.json")
        return _check_files([weights], kind, True)
    except IncompleteCheckpoint as error:
        return Completeness(False, kind, str(error), False)
    except CheckpointError as error:
        return Completeness(not isinstance(error, CorruptCheckpoint), kind, str(error), False)
    except OSError as error:
        return Completeness(False, kind, f"{path} cannot be read: {error.strerror or error}", False)


def _check_files(files: list[Path], kind: str, marked: bool) -> Completeness:
    """Whether all files of a folder are whole; the first that is not is the reason."""
    for file in files:
        found = check_complete(file)
        if not found.whole:
            return Completeness(False, kind, found.reason, False)
    return Completeness(True, kind, "", marked)
