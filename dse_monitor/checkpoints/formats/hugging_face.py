"""Folders of Hugging Face: weights in one file or in shards with an index, and JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from dse_monitor.checkpoints.formats.pieces import whole_of_pieces
from dse_monitor.checkpoints.reading.byte_source import ByteSource
from dse_monitor.checkpoints.reading.contents import Chunk, Opaque, TensorRef, shown
from dse_monitor.checkpoints.reading.plain_json import read_json_file
from dse_monitor.errors import CheckpointError, CorruptCheckpoint, IncompleteCheckpoint, UnsafeCheckpoint

ADAPTER_CONFIG = "adapter_config.json"  # peft's
# In the order transformers looks for them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
)
SIDECARS = (
    "config.json",
    "trainer_state.json",
    "preprocessor_config.json",
    "open_clip_config.json",
    ADAPTER_CONFIG,
)
MAX_SHARDS = 4096


def weights_of(folder: Path) -> Path | None:
    """The file of a folder that holds its weights or lists their shards; None when it is no such folder."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    others = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    return others[0] if len(others) == 1 else None


def sidecars(folder: Path, notes: list[str], names: tuple[str, ...] = SIDECARS) -> dict[str, Any]:
    """The JSON files beside the weights; a damaged one is noted and left out."""
    found: dict[str, Any] = {}
    for name in names:
        if (folder / name).is_file():
            try:
                found[name] = read_json_file(folder / name)
            except CheckpointError as error:
                notes.append(str(error))
    return found


def shards(index: Path) -> tuple[dict[str, str], list[Path]]:
    """The tensors' files as an index tells them, and the files in order.

    Raises:
        UnsafeCheckpoint: a file lies outside of the index's folder.
        CorruptCheckpoint: the index is no such index.
        IncompleteCheckpoint: a file is missing.
    """
    content = read_json_file(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptCheckpoint(
            f"{index} has no 'weight_map' of tensor names to files; save the checkpoint again"
        )
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise UnsafeCheckpoint(f"{index} names {len(names):,} files, expected at most {MAX_SHARDS:,}")
    paths = [inside(index.parent, name, str(index)) for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise IncompleteCheckpoint(
            f"{index} names {len(names)} files, {len(missing)} are missing (first {shown(missing[0])}); "
            "the folder is still being written or copied"
        )
    return weight_map, paths


def inside(folder: Path, name: str, where: str) -> Path:
    """A relative path that stays in its folder. Links are followed: the hub's cache is made of them.

    Raises:
        UnsafeCheckpoint: the name leads out of the folder.
    """
    path = PurePosixPath(name)
    if (
        not name
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or len(name) > 1024
    ):
        raise UnsafeCheckpoint(
            f"{where} names the file {shown(name)}, expected one inside its folder; nothing was read"
        )
    return folder / path


def read_shards(
    index: Path, open_file: Callable[[Path], tuple[Any, list[ByteSource], list[str]]]
) -> tuple[dict[str, Any], list[ByteSource], list[str]]:
    """All shards as one flat dict; the index must tell the truth about each."""
    weight_map, paths = shards(index)
    tree: dict[str, Any] = {}
    sources: list[ByteSource] = []
    notes: list[str] = []
    for path in paths:
        part, opened, said = open_file(path)
        if not isinstance(part, dict):
            raise CorruptCheckpoint(
                f"{path} holds a {type(part).__name__}, expected tensors by name; save it again"
            )
        for name, value in part.items():
            if name in tree:
                raise CorruptCheckpoint(
                    f"{index}: tensor {shown(name)} is in two shards; save the checkpoint again"
                )
            tree[name] = value
        sources += opened
        notes += said
    lacking = [name for name in weight_map if name not in tree]
    if lacking:
        raise CorruptCheckpoint(
            f"{index} promises {len(weight_map)} tensors, {len(lacking)} are in no shard (first "
            f"{shown(lacking[0])}); "
            "save the checkpoint again"
        )
    return tree, sources, notes


def join_pieces(parts: list[tuple[dict[str, Any], dict[str, Any]]], folder: Path) -> dict[str, Any] | None:
    """Tensors that several ranks saved in pieces as safetensors, each file noting where its pieces belong.

    Args:
        parts: tensors and free text of each file.
        folder: for messages.

    Returns:
        Whole tensors by name; None when the files carry no such note.
    """
    pieces: dict[str, list[tuple[tuple[int, ...], TensorRef]]] = {}
    for tensors, metadata in parts:
        raw = metadata.get("DCP_SHARDING_INFO")
        if not isinstance(raw, str):
            return None
        try:
            info = json.loads(raw)
        except (ValueError, RecursionError):
            raise CorruptCheckpoint(
                f"{folder}: a safetensors file notes its pieces in no valid JSON"
            ) from None
        for name, ref in tensors.items():
            entry = info.get(name) if isinstance(info, dict) else None
            offsets = entry.get("saved_offsets") if isinstance(entry, dict) else None
            if isinstance(ref, TensorRef) and isinstance(offsets, list) and len(offsets) == len(ref.shape):
                if all(type(n) is int and 0 <= n < 1 << 40 for n in offsets):
                    pieces.setdefault(name, []).append((tuple(offsets), ref))
                    continue
            raise CorruptCheckpoint(
                f"{folder}: nothing says where the piece of {shown(name)} belongs; save it again"
            )
    return {name: _join(found) for name, found in pieces.items()}


def _join(found: list[tuple[tuple[int, ...], TensorRef]]) -> TensorRef | Opaque:
    first = found[0][1]
    if len(found) == 1 and not any(found[0][0]):
        return first
    shape = tuple(
        max(offsets[axis] + ref.shape[axis] for offsets, ref in found) for axis in range(len(first.shape))
    )
    chunks = tuple(
        Chunk(offsets, ref.shape, ref._storage.record, is_zip=False)
        for offsets, ref in found
        if ref._storage is not None and ref._storage.record is not None and ref.dtype == first.dtype
    )
    return whole_of_pieces(first.dtype, shape, chunks)
