"""The directory of a zip file, read by position and believed only where it agrees with the file.

The standard library's `zipfile` accepts what a checkpoint never has (bytes before the first member, two
members of one name, members that share bytes), and those are the ways to show two readers two different
files. Formats: PKWARE APPNOTE 6.3, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (end
records).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from dse_monitor.checkpoints.reading.byte_source import ByteSource, Record, read_at
from dse_monitor.errors import CorruptCheckpoint, IncompleteCheckpoint, UnsafeCheckpoint

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64, LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
MAX_MEMBERS = 400_000  # ours: forty times a checkpoint with ten thousand tensors
MAX_DIRECTORY = 1 << 26  # bytes; ours
MAX_TAIL = 65_557  # bytes in which the end record must lie: 22 and a comment
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1 | 0x40
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class End:
    """Where the directory lies, relative to the start of the zip."""

    offset: int
    size: int
    members: int


def find_end(descriptor: int, source: ByteSource, base: int, size: int) -> End:
    """The end record of the zip in ``[base, base + size)``.

    Raises:
        IncompleteCheckpoint: there is none at the very end, so the file is not whole.
    """
    tail_size = min(size, MAX_TAIL)
    tail = read_at(descriptor, source, base + size - tail_size, tail_size)
    position = tail.rfind(END)
    while position >= 0:
        if position + 22 <= len(tail):
            disk, first, here, members, length, offset, comment = struct.unpack_from(
                "<4H2IH", tail, position + 4
            )
            if position + 22 + comment == len(tail):
                break
        position = tail.rfind(END, 0, position)
    else:
        raise _cut_short(source, "no zip end record at its end")
    end = size - tail_size + position
    if 0xFFFF in (here, members) or 0xFFFFFFFF in (length, offset):
        locator = read_at(descriptor, source, base + max(0, end - 20), min(20, end))
        if locator[:4] == LOCATOR64:
            _, at, _ = struct.unpack_from("<IQI", locator, 4)
            if at + 56 > end - 20:
                raise _cut_short(source, "no zip64 end record where its locator points")
            record = read_at(descriptor, source, base + at, 56)
            if record[:4] != END64:
                raise _cut_short(source, "no zip64 end record where its locator points")
            disk, first, here, members, length, offset = struct.unpack_from("<2I4Q", record, 16)
            end = at
    if disk or first or here != members:
        raise CorruptCheckpoint(f"{source.path}: a zip in several volumes; join them into one file first")
    if offset + length > end:
        raise _cut_short(source, f"a directory that should reach byte {offset + length} before byte {end}")
    if members and read_at(descriptor, source, base + offset, 4) != CENTRAL:
        raise _cut_short(source, f"no directory at byte {offset}")
    if read_at(descriptor, source, base, min(4, size)) != LOCAL and members:
        raise _cut_short(source, "something other than a zip member at its start")
    return End(offset, length, members)


def read_directory(descriptor: int, source: ByteSource, base: int, size: int) -> dict[str, Record]:
    """Every member by name, in the order of the directory.

    Raises:
        IncompleteCheckpoint: the end record or part of the directory is missing.
        CorruptCheckpoint: members overlap, share a name, or lie outside of the file.
        UnsafeCheckpoint: more or longer entries than any checkpoint has.
    """
    end = find_end(descriptor, source, base, size)
    if end.members > MAX_MEMBERS or end.size > MAX_DIRECTORY:
        raise UnsafeCheckpoint(
            f"{source.path}: its zip directory claims {end.members:,} members in {end.size:,} bytes, "
            "expected at most "
            f"{MAX_MEMBERS:,}; this is no checkpoint"
        )
    raw = read_at(descriptor, source, base + end.offset, end.size)
    entries = []
    position = 0
    for _ in range(end.members):
        if raw[position : position + 4] != CENTRAL or position + 46 > len(raw):
            raise _cut_short(source, f"no directory entry at byte {end.offset + position}")
        flags, method = struct.unpack_from("<2H", raw, position + 8)
        crc, packed, length, name_size, extra_size, comment_size = struct.unpack_from(
            "<3I3H", raw, position + 16
        )
        (header,) = struct.unpack_from("<I", raw, position + 42)
        begin = position + 46
        position = begin + name_size + extra_size + comment_size
        if position > len(raw):
            raise _cut_short(source, "a directory that ends inside an entry")
        name = raw[begin : begin + name_size].decode("utf-8", "replace")
        if 0xFFFFFFFF in (packed, length, header):
            extra = raw[begin + name_size : begin + name_size + extra_size]
            length, packed, header = _zip64(source, name, extra, length, packed, header)
        entries.append((name, header, packed, length, crc, flags, method, name_size))
    if position != len(raw):
        raise CorruptCheckpoint(
            f"{source.path}: its zip directory is longer than its {end.members} entries; save it again"
        )
    return _records(source, base, end, entries)


def _records(source: ByteSource, base: int, end: End, entries: list[tuple]) -> dict[str, Record]:
    """Members as records, after checking that none reaches into the next."""
    records: dict[str, Record] = {}
    following = end.offset
    for name, header, packed, length, crc, flags, method, name_size in sorted(
        entries, key=lambda e: e[1], reverse=True
    ):
        if header + 30 + name_size + packed > following:
            raise CorruptCheckpoint(
                f"{source.path}: zip member {name!r} of {packed} bytes at byte {header} reaches beyond "
                f"byte {following}, "
                "where the next one or the directory begins; save the checkpoint again"
            )
        if name in records:
            raise CorruptCheckpoint(
                f"{source.path}: two zip members are called {name!r}, expected one of each name"
            )
        if (
            flags & _ENCRYPTED
            or method not in (_STORED, _DEFLATED)
            or (method == _STORED and packed != length)
        ):
            raise CorruptCheckpoint(
                f"{source.path}: zip member {name!r} is encrypted or packed by method {method}, expected "
                "stored bytes"
            )
        records[name] = Record(
            source, name, base + header, length, crc, member=True, limit=base + following,
            packed=packed if method == _DEFLATED else None,
        )  # fmt: skip
        following = header
    return {name: records[name] for name, *_ in entries}


def _zip64(source: ByteSource, name: str, extra: bytes, *saturated: int) -> list[int]:
    """The values that did not fit 32 bits, in their fixed order: length, packed length, header."""
    position = 0
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        if tag == 1:
            wide = iter(
                struct.unpack_from(f"<{min(size, len(extra) - position - 4) // 8}Q", extra, position + 4)
            )
            values = [next(wide, -1) if value == 0xFFFFFFFF else value for value in saturated]
            if -1 not in values:
                return values
        position += 4 + size
    raise CorruptCheckpoint(
        f"{source.path}: zip member {name!r} has no 64-bit sizes where it needs them; save it again"
    )


def data_offset(descriptor: int, record: Record) -> int:
    """Where a member's bytes begin, from its local header."""
    header = read_at(descriptor, record.source, record.offset, 30)
    if header[:4] != LOCAL:
        raise record.fail(f"has no zip header at byte {record.offset}")
    name_size, extra_size = struct.unpack_from("<2H", header, 26)
    start = record.offset + 30 + name_size + extra_size
    stored = record.nbytes if record.packed is None else record.packed
    if start + stored > record.limit:
        raise record.fail(f"of {stored} bytes reaches beyond byte {record.limit}, where the next one begins")
    if (
        read_at(descriptor, record.source, record.offset + 30, name_size).decode("utf-8", "replace")
        != record.name
    ):
        raise record.fail("has another name in its own header")
    return start


def read_member(descriptor: int, record: Record, limit: int) -> bytes:
    """A whole small member; its checksum is left to the caller (see `torch_zip`).

    Raises:
        UnsafeCheckpoint: it is longer than ``limit`` bytes.
    """
    if record.nbytes > limit:
        raise UnsafeCheckpoint(
            f"{record.source.path}: record {record.name!r} has {record.nbytes:,} bytes, expected at most "
            f"{limit:,}; "
            "this is no checkpoint"
        )
    start = data_offset(descriptor, record)
    if record.packed is not None:
        return bytes(inflate(descriptor, record, start))
    return read_at(descriptor, record.source, start, record.nbytes)


def inflate(descriptor: int, record: Record, start: int) -> bytearray:
    """A deflated member, unpacked to the length its directory promises and not a byte further."""
    assert record.packed is not None
    content = bytearray()
    unpacker = zlib.decompressobj(-15)
    try:
        for position in range(0, record.packed, _CHUNK):
            piece = read_at(
                descriptor, record.source, start + position, min(_CHUNK, record.packed - position)
            )
            while piece and not unpacker.eof:
                content += unpacker.decompress(piece, min(_CHUNK, record.nbytes - len(content) + 1))
                piece = unpacker.unconsumed_tail
                if len(content) > record.nbytes:
                    raise record.fail(
                        f"unpacks to more than the {record.nbytes} bytes its directory promises"
                    )
    except zlib.error as error:
        raise record.fail(f"cannot be unpacked ({error})") from None
    if len(content) != record.nbytes:
        raise record.fail(f"unpacks to {len(content)} bytes, its directory promises {record.nbytes}")
    return content


def _cut_short(source: ByteSource, found: str) -> IncompleteCheckpoint:
    return IncompleteCheckpoint(
        f"{source.path} is no whole zip file: {found}; it is cut short or still being written"
    )
