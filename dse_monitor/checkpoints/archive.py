"""Opening a checkpoint of any container: is it whole, what is in it, and the bytes of wanted tensors.

Imports no torch, executes nothing of the file, keeps no file open between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from dse_monitor.checkpoints.byte_source import ByteSource
from dse_monitor.checkpoints.contents import Chunk, Opaque, TensorRef, attributes, module_state, walk
from dse_monitor.checkpoints.safetensors_file import header_length, read_safetensors
from dse_monitor.checkpoints.tensor_bytes import read_tensors
from dse_monitor.checkpoints.torch_zip import read_torch_zip
from dse_monitor.checkpoints.zip_directory import LOCAL, read_directory
from dse_monitor.errors import CheckpointError, IncompleteCheckpoint

__all__ = [
    "Archive",
    "Completeness",
    "Opaque",
    "TensorRef",
    "attributes",
    "check_complete",
    "module_state",
    "open_archive",
    "walk",
]


@dataclass(frozen=True)
class Completeness:
    """Whether a file or folder holds a finished checkpoint.

    Attributes:
        whole: True when nothing is missing.
        container: kind of file; "" when not recognised.
        reason: what is missing, or what was not recognised; "" otherwise.
        has_end_marker: whether the format itself says where it ends; without it only time tells.
    """

    whole: bool
    container: str
    reason: str
    has_end_marker: bool


@dataclass
class Archive:
    """What is in a checkpoint, and a way to the bytes of its tensors.

    Attributes:
        path: file or folder.
        container: kind of file, in words.
        tree: nested dicts and lists of plain values, `TensorRef` and `Opaque`.
        notes: what the user should know, one sentence each.
        sidecars: small JSON files beside the weights by name (``config.json``, ``trainer_state.json``).
        metadata: free text in a safetensors header.
    """

    path: Path
    container: str
    tree: Any
    notes: list[str] = field(default_factory=list)
    sidecars: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    _sources: list[ByteSource] = field(default_factory=list, repr=False)

    @property
    def config(self) -> dict[str, Any]:
        """The network's description in a Hugging Face folder (``config.json``); empty without one."""
        config = self.sidecars.get("config.json")
        return config if isinstance(config, dict) else {}

    def read(self, refs: Sequence[TensorRef]) -> list[bytearray]:
        """Row-major little-endian bytes of each tensor; checksums are compared where the file has any.

        Raises:
            CorruptCheckpoint: a checksum differs, or the file changed since it was opened.
            IncompleteCheckpoint: the file is gone or shorter than it was.
        """
        return read_tensors(refs, _no_chunks)

    def verify_unchanged(self) -> None:
        """Look at every file once more, after reading.

        A file that was deleted meanwhile is no error: what was read came through a handle on it, and is
        noted.

        Raises:
            CorruptCheckpoint: a file was rewritten or replaced.
        """
        for source in self._sources:
            if not source.verify_unchanged():
                self.notes.append(f"{source.path.name} was removed after it was read")

    def close(self) -> None:
        """Nothing is held open; here so that an archive can be used like a file."""

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _no_chunks(chunk: Chunk, dtype: str) -> TensorRef:
    raise AssertionError(f"no container with chunks: {chunk.record.name}")


def open_archive(path: Path) -> Archive:
    """Open a checkpoint and read everything but the tensors.

    Raises:
        IncompleteCheckpoint: it is cut short, still being written, or gone.
        CorruptCheckpoint: it contradicts itself.
        UnsafeCheckpoint: it asks for more than data; nothing was executed.
        CheckpointError: it is of a kind that is not read; the text says what to do.
    """
    path = Path(path)
    source = ByteSource(path)
    head = source.read(0, min(16, source.size))
    if head[:4] == LOCAL:
        tree, notes = read_torch_zip(source)
        return Archive(path, "torch zip", tree, notes, _sources=[source])
    if header_length(head) is not None:
        tensors, metadata = read_safetensors(source)
        return Archive(path, "safetensors", tensors, metadata=metadata, _sources=[source])
    raise CheckpointError(f"{path} is no known checkpoint: it begins with {head!r}")


def check_complete(path: Path) -> Completeness:
    """Whether a checkpoint is whole, without reading its tensors. Cheap; never raises for what it finds."""
    try:
        source = ByteSource(Path(path))
        head = source.read(0, min(16, source.size))
        if head[:4] == LOCAL:
            with source.open() as descriptor:
                read_directory(descriptor, source, 0, source.size)
            return Completeness(True, "torch zip", "", True)
        if header_length(head) is not None:
            read_safetensors(source)
            return Completeness(True, "safetensors", "", True)
    except IncompleteCheckpoint as error:
        return Completeness(False, "", str(error), False)
    except CheckpointError as error:
        return Completeness(False, "", str(error), False)
    return Completeness(True, "", f"unrecognised: begins with {head!r}", False)
