"""Checkpoints of other worlds: recognised, told apart from damage, and refused with advice."""

from __future__ import annotations

import re
from pathlib import Path

from dse_monitor.checkpoints.reading.byte_source import ByteSource, read_at
from dse_monitor.errors import CheckpointError, CorruptCheckpoint, IncompleteCheckpoint

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
NUMPY_MAGIC = b"\x93NUMPY"
TENSORFLOW_MAGIC = 0xDB4775248B80FB57  # last eight bytes of an index file (a table of key-value pairs)
_TENSORFLOW_DATA = re.compile(r"(.+)\.data-(\d{5})-of-(\d{5})")
_EXPECTED = "expected a torch or safetensors checkpoint"

ADVICE = {
    "legacy tar": f"is a tar file, as torch wrote before 2017; {_EXPECTED}. "
    "Load it with an old torch where you trust it, and save its weights again with torch.save",
    "HDF5": f"is an HDF5 file (Keras); {_EXPECTED}. Convert its weights and save them as safetensors",
    "NumPy array": f"is a NumPy .npy file; {_EXPECTED}. Save the weights by name as safetensors",
    "TensorFlow": f"is part of a TensorFlow checkpoint; {_EXPECTED}. "
    "Convert its variables and save them as safetensors",
    "Orbax": f"is an Orbax checkpoint (JAX); {_EXPECTED}. Restore it and save the weights as safetensors",
    "plain pickle": f"is a pickle that torch.save did not write; {_EXPECTED}. "
    "Load it where you trust it, and save its weights with torch.save",
}


def foreign_file(source: ByteSource, head: bytes) -> str:
    """The kind of a file that is recognised only to be refused; "" for others."""
    if head.startswith(HDF5_MAGIC):
        return "HDF5"
    if head.startswith(NUMPY_MAGIC):
        return "NumPy array"
    if _TENSORFLOW_DATA.fullmatch(source.path.name):
        return "TensorFlow"
    if source.path.suffix == ".index" and source.size >= 48:
        if int.from_bytes(source.read(source.size - 8, 8), "little") == TENSORFLOW_MAGIC:
            return "TensorFlow"
    if source.size >= 512 and _is_tar(source.read(0, 512)):
        return "legacy tar"
    if len(head) >= 64 and head[0] == 0x80 and head[1] <= 5:
        return "plain pickle"
    return ""


def foreign_folder(folder: Path) -> str:
    """The kind of a folder that is recognised only to be refused; "" for others."""
    if ".orbax-checkpoint-tmp" in folder.name or any(
        (folder / name).exists()
        for name in ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "checkpoint.orbax")
    ):
        return "Orbax"
    return ""


def refusal(path: Path, kind: str) -> CheckpointError:
    """The error for a recognised kind, to be raised."""
    return CheckpointError(f"{path} {ADVICE[kind]}")


def check_foreign(source: ByteSource, kind: str) -> None:
    """Whether a file of a foreign kind is whole, as far as that can be told.

    Raises:
        IncompleteCheckpoint: it is not.
    """
    if kind == "HDF5":
        end = _hdf5_end(source)
        if end is not None and end != source.size:
            raise IncompleteCheckpoint(
                f"{source.path} (HDF5) has {source.size} bytes, its superblock says {end}"
            )
    if kind == "TensorFlow":
        match = _TENSORFLOW_DATA.fullmatch(source.path.name)
        stem = match[1] if match else source.path.stem
        if not source.path.with_name(f"{stem}.index").exists():
            raise IncompleteCheckpoint(f"{source.path} (TensorFlow) has no {stem}.index beside it yet")
        if match:
            count = int(match[3])
        else:
            found = (_TENSORFLOW_DATA.fullmatch(path.name) for path in source.path.parent.iterdir())
            count = next((int(data[3]) for data in found if data and data[1] == stem), 1)
        for shard in range(min(count, 4096)):
            name = f"{stem}.data-{shard:05d}-of-{count:05d}"
            if not source.path.with_name(name).exists():
                raise IncompleteCheckpoint(f"{source.path} (TensorFlow) lacks {name}")


def _hdf5_end(source: ByteSource) -> int | None:
    """The end-of-file address in a superblock (HDF5 specification, II.A); None when it is not understood."""
    raw = source.read(0, min(96, source.size))
    if len(raw) < 48:
        return None
    version = raw[8]
    offsets = raw[13] if version < 2 else raw[9]  # bytes of an address
    place = {0: 24, 1: 28, 2: 12, 3: 12}.get(version)
    if place is None or offsets not in (4, 8):
        return None
    place += 2 * offsets  # after the base address and one other
    return int.from_bytes(raw[place : place + offsets], "little")


def _is_tar(block: bytes) -> bool:
    """Whether the first 512 bytes are a tar header: it holds the sum of its bytes, that field as blanks."""
    if len(block) < 512 or not block[0]:
        return False
    try:
        said = int(block[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return said == sum(block[:148]) + 8 * 0x20 + sum(block[156:])


def unknown_file(source: ByteSource, head: bytes) -> CheckpointError:
    """The error for a file nothing was recognised in, to be raised."""
    if not any(head):
        with source.open() as descriptor:
            start = read_at(descriptor, source, 0, min(4096, source.size))
        if not any(start):
            return IncompleteCheckpoint(
                f"{source.path} begins with zero bytes; its start has not been written yet, or was lost"
            )
    if source.size < 64:
        return IncompleteCheckpoint(f"{source.path} has only {source.size} bytes; it is still being written")
    return CorruptCheckpoint(
        f"{source.path} is of no known kind: it begins with {head[:8]!r}; {_EXPECTED}, or a folder of one"
    )
