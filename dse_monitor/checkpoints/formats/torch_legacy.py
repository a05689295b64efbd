"""Files of `torch.save` before version 1.6: five pickles, then every storage with its length before it.

The pickles are a magic number, a protocol number, facts about the writing machine, the object, and the
storages' keys in the order their bytes follow. Nothing marks the end, but it can be computed, and must be
the end of the file.
"""

from __future__ import annotations

from typing import Any

from dse_monitor.checkpoints.reading.byte_source import ByteSource, Record, read_at
from dse_monitor.checkpoints.reading.contents import Opaque, Storage, shown
from dse_monitor.checkpoints.reading.pickle_reader import PickleCutShort, read_pickle
from dse_monitor.checkpoints.reading.tree import untangle
from dse_monitor.checkpoints.reading.understood import storage_type
from dse_monitor.errors import CorruptCheckpoint, IncompleteCheckpoint, UnsafeCheckpoint

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAX_PICKLES = 256 << 20  # bytes of all five together; ours, as for a torch zip
_FIRST_WINDOW = 1 << 20  # bytes looked at first; most files need no more


def is_legacy(head: bytes) -> bool:
    """Whether a file that begins like this is a legacy torch file (any pickle protocol)."""
    try:
        value, _ = read_pickle(head, where="the first bytes")
    except (CorruptCheckpoint, UnsafeCheckpoint):  # other files' first bytes may read as any opcode
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
        raise CorruptCheckpoint(f"{where} has protocol {shown(protocol)}, expected {PROTOCOL}; save it again")
    big_endian = isinstance(machine, dict) and machine.get("little_endian") is False
    storages = _Storages(source, big_endian)
    value, position = read_pickle(data, where=where, start=position, persistent=storages)
    keys, position = read_pickle(data, where=where, start=position)
    storages.place(keys, position)
    return untangle(value, where)


class _Storages:
    """Persistent ids in, storages out; the object comes before the bytes, so places are filled in later."""

    def __init__(self, source: ByteSource, big_endian: bool) -> None:
        self.source = source
        self.big_endian = big_endian
        self.sizes: dict[str, tuple[int, int]] = {}  # bytes per element, elements
        self.known: dict[tuple[str, str, tuple[int, int] | None], Storage] = {}
        self.waiting: dict[
            str, list[tuple[Record, int]]
        ] = {}  # records and where they begin in their storage

    def __call__(self, identifier: Any) -> Any:
        module = _source_of_module(identifier)
        if module is not None:
            return module
        dtype, itemsize, key, count, view = _parse(identifier)
        if self.sizes.setdefault(key, (itemsize, count)) != (itemsize, count):
            raise ValueError(f"storage {shown(key)} has two sizes")
        found = self.known.get((key, dtype, view))
        if found is None:
            first, size = view or (0, count)
            if first + size > count:
                raise ValueError(f"a view reaches beyond storage {shown(key)}")
            record = Record(self.source, key, -1, size * itemsize)
            self.waiting.setdefault(key, []).append((record, first * itemsize))
            found = Storage(dtype, record.nbytes, record, big_endian=self.big_endian)
            self.known[key, dtype, view] = found
        return found

    def place(self, keys: Any, position: int) -> None:
        """Walk over the storages behind the pickles: eight bytes of length, then the elements."""
        where = f"{self.source.path} (legacy torch file)"
        if (
            type(keys) is not list
            or len(keys) != len(self.sizes)
            or not all(type(key) is str for key in keys)
        ):
            raise CorruptCheckpoint(f"{where} lists other storages than its object uses; save it again")
        if set(keys) != set(self.sizes):
            raise CorruptCheckpoint(f"{where} lists other storages than its object uses; save it again")
        order = "big" if self.big_endian else "little"
        with self.source.open() as descriptor:
            for key in keys:
                itemsize, count = self.sizes[key]
                found = int.from_bytes(read_at(descriptor, self.source, position, 8), order)
                if found != count:
                    raise CorruptCheckpoint(
                        f"{where}: storage {shown(key)} holds {found} elements at byte {position}, its "
                        "pickle says "
                        f"{count}; save it again"
                    )
                for record, first in self.waiting[key]:
                    record.offset = position + 8 + first
                position += 8 + itemsize * count
        if position > self.source.size:
            raise IncompleteCheckpoint(
                f"{where} has {self.source.size} bytes, its storages end at {position}; it is cut short or "
                "still "
                "being written"
            )
        if position < self.source.size:
            raise CorruptCheckpoint(
                f"{where} has {self.source.size} bytes, its storages end at {position}; something was "
                "appended to "
                "it, save it again"
            )


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
