"""Folders of `torch.distributed.checkpoint` (FSDP, DINOv3, torchtitan): ``.metadata`` and files per rank.

torch reads ``.metadata`` with plain `pickle.load`, which executes what it says; here the inert reader does.
The file is renamed into place after all ranks have written, so a folder that has it is whole if the ranges
it names exist.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dse_monitor.checkpoints.formats.hugging_face import inside
from dse_monitor.checkpoints.formats.pieces import whole_of_pieces
from dse_monitor.checkpoints.formats.torch_zip import MAX_PICKLE, read_torch_zip
from dse_monitor.checkpoints.reading.byte_source import ByteSource, Record
from dse_monitor.checkpoints.reading.contents import ITEM_SIZES, Chunk, Opaque, TensorRef, Unbuilt, shown
from dse_monitor.checkpoints.reading.pickle_reader import PickleCutShort, read_pickle
from dse_monitor.checkpoints.reading.understood import dtype_of
from dse_monitor.errors import CheckpointError, CorruptCheckpoint, IncompleteCheckpoint, UnsafeCheckpoint

METADATA = ".metadata"
MAX_FILES = 65_536
MAX_VALUE = 1 << 24  # bytes of one pickled value that is no tensor; larger ones stay unread
MAX_VALUES = 20_000

_Place = tuple[ByteSource, int, int, bool]  # file, offset, length, whether it is transformed (compressed)


def is_distributed(folder: Path) -> bool:
    """Whether a folder is such a checkpoint, finished or not."""
    return (folder / METADATA).is_file() or any(folder.glob("*.distcp")) or any(folder.glob("*.metadata.tmp"))


def read_distributed(
    folder: Path, *, values: bool = True
) -> tuple[dict[str, Any], list[ByteSource], list[str]]:
    """The tree, nested as it was before saving where the metadata tells, the files, and notes.

    Args:
        folder: the checkpoint.
        values: whether to read the values that are no tensors (counters, settings) too.

    Raises:
        IncompleteCheckpoint: there is no metadata yet, or a file is missing or short.
        CorruptCheckpoint: the metadata contradicts itself.
        UnsafeCheckpoint: it asks for more than data, or names files outside of the folder.
    """
    path = folder / METADATA
    if not path.is_file():
        raise IncompleteCheckpoint(
            f"{folder} has no {METADATA} yet; its ranks are still writing, or one of them died"
        )
    metadata_source = ByteSource(path)
    where = f"{path} (torch.distributed.checkpoint)"
    if metadata_source.size > MAX_PICKLE:
        raise UnsafeCheckpoint(f"{where} has {metadata_source.size:,} bytes, expected at most {MAX_PICKLE:,}")
    try:
        value, _ = read_pickle(metadata_source.read(0, metadata_source.size), where=where)
    except PickleCutShort as error:
        raise IncompleteCheckpoint(str(error)) from None
    entries, mappings, stored = _metadata(value, where)
    places = _places(folder, stored, where)
    sources = [metadata_source, *{id(place[0]): place[0] for place in places.values()}.values()]
    tree: dict[str, Any] = {}
    notes: list[str] = []
    for name, entry in entries.items():
        chunks = _field(entry, "chunks")
        if chunks is not None:
            item: Any = _tensor(name, entry, chunks, places, where)
        elif values:
            item = _value(name, places, notes)
        else:
            continue
        _put(tree, mappings.get(name), name, item)
    return {key: _lists(item) for key, item in tree.items()}, sources, notes


def _metadata(value: Any, where: str) -> tuple[dict[str, Any], dict[str, Any], dict[Any, Any]]:
    """Entries by name, their paths before flattening, and where their bytes lie."""
    entries, stored = _field(value, "state_dict_metadata"), _field(value, "storage_data")
    if (
        not isinstance(entries, dict)
        or not isinstance(stored, dict)
        or not all(isinstance(k, str) for k in entries)
    ):
        raise CorruptCheckpoint(
            f"{where} holds {shown(value)}, expected torch.distributed.checkpoint.metadata.Metadata with "
            "names and places"
        )
    mappings = _field(value, "planner_data")
    return entries, mappings if isinstance(mappings, dict) else {}, stored


def _field(value: Any, name: str) -> Any:
    """An attribute of a pickled dataclass."""
    return value.state.get(name) if isinstance(value, Opaque) and isinstance(value.state, dict) else None


def _places(
    folder: Path, stored: dict[Any, Any], where: str
) -> dict[tuple[str, tuple[int, ...] | None], _Place]:
    """Where each piece lies, by tensor name and offset; every range must be inside its file."""
    files: dict[str, ByteSource] = {}
    places: dict[tuple[str, tuple[int, ...] | None], _Place] = {}
    for index, info in stored.items():
        name, offset = _field(index, "fqn"), _field(index, "offset")
        file, start, length = (_field(info, key) for key in ("relative_path", "offset", "length"))
        if (
            type(name) is not str
            or type(file) is not str
            or type(start) is not int
            or type(length) is not int
            or not 0 <= start < 1 << 60
            or not 0 <= length < 1 << 60
            or (offset is not None and _numbers(offset) is None)
        ):
            raise CorruptCheckpoint(
                f"{where}: the place of {shown(name)} is {shown(info)}, expected a file and a range"
            )
        if file not in files:
            if len(files) >= MAX_FILES:
                raise UnsafeCheckpoint(f"{where} names more than {MAX_FILES:,} files")
            files[file] = ByteSource(inside(folder, file, where))
        source = files[file]
        if start + length > source.size:
            raise IncompleteCheckpoint(
                f"{source.path} has {source.size} bytes, {METADATA} places {shown(name)} at bytes {start} to "
                f"{start + length}; it is cut short or still being written"
            )
        key = name, None if offset is None else _numbers(offset)
        places[key] = source, start, length, bool(_field(info, "transform_descriptors"))
    return places


def _tensor(name: str, entry: Any, chunks: Any, places: dict[Any, _Place], where: str) -> TensorRef | Opaque:
    """A tensor entry as the pieces it was saved in."""
    shape = _numbers(_field(entry, "size"))
    if shape is None or type(chunks) is not list:
        raise CorruptCheckpoint(
            f"{where}: tensor {shown(name)} has no size or no list of pieces; save it again"
        )
    try:
        dtype = _dtype(_field(entry, "properties"))
    except Unbuilt as error:
        return Opaque("torch.Tensor", (shape,), note=f"not built: {error}")
    found = []
    for chunk in chunks:
        offsets, sizes = _numbers(_field(chunk, "offsets")), _numbers(_field(chunk, "sizes"))
        if offsets is None or sizes is None:
            raise CorruptCheckpoint(
                f"{where}: a piece of {shown(name)} has no offsets or sizes; save it again"
            )
        place = places.get((name, offsets)) or (places.get((name, None)) if len(chunks) == 1 else None)
        if place is None:
            raise CorruptCheckpoint(
                f"{where}: no file holds the piece of {shown(name)} at {list(offsets)}; save it again"
            )
        source, start, length, transformed = place
        if transformed:
            return Opaque(
                "torch.Tensor", (shape,), note=f"not built: a {dtype} tensor of {list(shape)}, compressed"
            )
        if math.prod(sizes) * ITEM_SIZES[dtype] > length:
            raise CorruptCheckpoint(
                f"{where}: the piece of {shown(name)} at {list(offsets)} would need {list(sizes)} elements "
                f"of {dtype}, "
                f"its file has {length} bytes for it; save it again"
            )
        found.append(Chunk(offsets, sizes, Record(source, name, start, length)))
    return whole_of_pieces(dtype, shape, tuple(found))


def _dtype(properties: Any) -> str:
    """Element type of a tensor entry; its properties are pickled as a tuple that begins with it."""
    state = properties.state if isinstance(properties, Opaque) else None
    if isinstance(state, (tuple, list)) and state:
        return dtype_of(state[0])
    return dtype_of(state.get("dtype") if isinstance(state, dict) else None)


def _value(name: str, places: dict[Any, _Place], notes: list[str]) -> Any:
    """A value that is no tensor: a small file of torch.save inside a rank's file."""
    place = places.get((name, None))
    if place is None:
        return Opaque("torch.distributed.checkpoint value", (), note="not built: no file holds it")
    source, start, length, transformed = place
    if transformed or length > MAX_VALUE:
        return Opaque(
            "torch.distributed.checkpoint value", (), note=f"not built: {length} bytes, large or compressed"
        )
    try:
        tree, said = read_torch_zip(source, start, length, f"{shown(name)}, ")
    except CheckpointError as error:
        return Opaque("torch.distributed.checkpoint value", (), note=f"not built: {error}")
    notes += [note for note in said if note not in notes]
    return tree


def _put(tree: dict[str, Any], path: Any, name: str, item: Any) -> None:
    """Store an item where it was before names were flattened; under its flat name when that is not known."""
    if type(path) is not tuple or not 0 < len(path) <= 64 or not all(type(key) in (str, int) for key in path):
        path = (name,)
    place = tree
    for key in path[:-1]:
        below = place.setdefault(key, {})
        if type(below) is not dict:
            place, path = tree, (name,)
            break
        place = below
    place[path[-1]] = item


def _lists(value: Any) -> Any:
    """Dicts that count from zero were lists before names were flattened (an optimiser's groups)."""
    if type(value) is not dict:
        return value
    items = [_lists(item) for item in value.values()]
    if items and list(value) == list(range(len(value))):
        return items
    return dict(zip(value, items, strict=True))


def _numbers(value: Any) -> tuple[int, ...] | None:
    if type(value) not in (tuple, list) or len(value) > 64:
        return None
    return tuple(value) if all(type(item) is int and 0 <= item < 1 << 48 for item in value) else None
