"""Files of `torch.save` before version 1.6: five pickles, then every storage with its length before it.

The pickles are a magic number, a protocol number, facts about the writing machine, the object, and the
storages' keys in the order their bytes follow. Nothing marks the end, but it can be computed, and must be
the end of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dse_monitor.checkpoints.byte_source import ByteSource, Record, read_at
from dse_monitor.checkpoints.contents import Opaque, Storage
from dse_monitor.checkpoints.pickle_reader import PickleCutShort, read_pickle
from dse_monitor.checkpoints.tree import untangle
from dse_monitor.checkpoints.understood import storage_type
from dse_monitor.errors import CorruptCheckpoint, IncompleteCheckpoint

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAX_PICKLES = 256 << 20  # bytes of all five together; ours, as for a torch zip
_FIRST_WINDOW = 1 << 20  # bytes looked at first; most files need no more


def is_legacy(head: bytes) -> bool:
    """Whether a file that begins like this is a legacy torch file (any pickle protocol)."""
    try:
        value, _ = read_pickle(head, where="the first bytes")
    except CorruptCheckpoint:
        return False
    return value == MAGIC


def read_torch_legacy(source: ByteSource) -> tuple[Any, list[str]]:
    """The tree of a legacy file and notes for the user.

    Raises:
        IncompleteCheckpoint: the file ends before its last storage does.
        CorruptCheckpoint: its parts contradict each other, or something was appended.
        UnsafeCheckpoint: a pickle asks for more than data.
    """
    window = _FIRST_WINDOW
    while True:
        with source.open() as descriptor:
            data = read_at(descriptor, source, 0, min(window, source.size))
        try:
            return _read(source, data)
        except PickleCutShort as error:
            if window >= source.size:
                raise IncompleteCheckpoint(
                    f"{source.path} (legacy torch file) ends at byte {source.size}, inside its pickles; it "
                    "is cut short "
                    "or still being written"
                ) from None
            if window >= MAX_PICKLES:
                raise CorruptCheckpoint(
                    f"{source.path} (legacy torch file) has pickles of more than {MAX_PICKLES:,} bytes; "
                    "save it again"
                ) from error
            window = min(8 * window, MAX_PICKLES)


def _read(source: ByteSource, data: bytes) -> tuple[Any, list[str]]:
    where = f"{source.path} (legacy torch file)"
    magic, position = read_pickle(data, where=where)
    protocol, position = read_pickle(data, where=where, start=position)
    machine, position = read_pickle(data, where=where, start=position)
    if magic != MAGIC or protocol != PROTOCOL:
        raise CorruptCheckpoint(f"{where} has protocol {protocol!r:.40}, expected {PROTOCOL}; save it again")
    big_endian = isinstance(machine, dict) and machine.get("little_endian") is False
    # The object comes before the places of its storages, so it is read twice: for their sizes, then for good.
    begin = position
    sizes: dict[str, tuple[str, int, int]] = {}
    _, position = read_pickle(data, where=where, start=begin, persistent=_collect(sizes))
    keys, position = read_pickle(data, where=where, start=position)
    roots = _places(source, position, keys, sizes, big_endian)
    value, _ = read_pickle(data, where=where, start=begin, persistent=_resolve(source, roots))
    return untangle(value, where)


def _collect(sizes: dict[str, tuple[str, int, int]]) -> Callable[[Any], Any]:
    """Note element type, bytes per element and elements of each storage."""

    def persistent(identifier: Any) -> Any:
        module = _source_of_module(identifier)
        if module is not None:
            return module
        dtype, itemsize, key, count, _ = _parse(identifier)
        if sizes.setdefault(key, (dtype, itemsize, count))[1:] != (itemsize, count):
            raise ValueError(f"storage {key!r:.40} has two sizes")
        return Storage(dtype, itemsize * count)

    return persistent


def _places(
    source: ByteSource, position: int, keys: Any, sizes: dict[str, tuple[str, int, int]], big_endian: bool
) -> dict[str, Storage]:
    """Walk over the storages behind the pickles: eight bytes of length, then the elements."""
    if type(keys) is not list or set(keys) != set(sizes) or len(keys) != len(sizes):
        raise CorruptCheckpoint(
            f"{source.path} (legacy torch file) lists other storages than its object uses; save it again"
        )
    roots: dict[str, Storage] = {}
    with source.open() as descriptor:
        for key in keys:
            dtype, itemsize, count = sizes[key]
            found = int.from_bytes(
                read_at(descriptor, source, position, 8), "big" if big_endian else "little"
            )
            if found != count:
                raise CorruptCheckpoint(
                    f"{source.path} (legacy torch file): storage {key!r:.40} holds {found} elements at byte "
                    f"{position}, "
                    f"its pickle says {count}; save it again"
                )
            record = Record(source, key, position + 8, itemsize * count)
            roots[key] = Storage(dtype, record.nbytes, record, big_endian=big_endian)
            position += 8 + record.nbytes
    if position > source.size:
        raise IncompleteCheckpoint(
            f"{source.path} (legacy torch file) has {source.size} bytes, its storages end at {position}; "
            "it is cut short or still being written"
        )
    if position < source.size:
        raise CorruptCheckpoint(
            f"{source.path} (legacy torch file) has {source.size} bytes, its storages end at {position}; "
            "something was appended to it, save it again"
        )
    return roots


def _resolve(source: ByteSource, roots: dict[str, Storage]) -> Callable[[Any], Any]:
    """Storages with their places; a view is a stretch of its root."""

    def persistent(identifier: Any) -> Any:
        module = _source_of_module(identifier)
        if module is not None:
            return module
        dtype, itemsize, key, _, view = _parse(identifier)
        root = roots[key]
        if view is None:
            return root
        first, size = view
        if (first + size) * itemsize > root.nbytes:
            raise ValueError(f"a view reaches beyond storage {key!r:.40}")
        assert root.record is not None
        record = Record(source, key, root.record.offset + first * itemsize, size * itemsize)
        return Storage(dtype, record.nbytes, record, big_endian=root.big_endian)

    return persistent


def _source_of_module(identifier: Any) -> Opaque | None:
    """``("module", class, file, text)``: torch kept the source of pickled modules beside their class."""
    if type(identifier) is tuple and len(identifier) == 4 and identifier[0] == "module":
        if isinstance(identifier[1], Opaque) and identifier[1].args is None:
            return identifier[1]
        raise ValueError("a module without a class")
    return None


def _parse(identifier: Any) -> tuple[str, int, str, int, tuple[int, int] | None]:
    """``("storage", class, key, device, elements[, view])``: dtype, element bytes, key, elements, view."""
    if type(identifier) is not tuple or len(identifier) not in (5, 6) or identifier[0] != "storage":
        raise ValueError("not in the form torch writes them")
    dtype, itemsize = storage_type(identifier[1])
    key, count = identifier[2], identifier[4]
    if type(key) is not str or type(count) is not int or not 0 <= count < 1 << 56:
        raise ValueError("its key or length is of the wrong kind")
    view = identifier[5] if len(identifier) == 6 else None
    if view is None:
        return dtype, itemsize, key, count, None
    if (
        type(view) is not tuple
        or len(view) != 3
        or any(type(n) is not int or not 0 <= n < 1 << 56 for n in view[1:])
    ):
        raise ValueError("its view is of the wrong kind")
    return dtype, itemsize, key, count, (view[1], view[2])
