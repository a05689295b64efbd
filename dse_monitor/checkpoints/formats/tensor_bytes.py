"""From descriptions of tensors to their bytes: each record is read once and its checksum compared."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dse_monitor.checkpoints.formats.pieces import open_piece
from dse_monitor.checkpoints.reading.byte_source import ByteSource, Record, read_into
from dse_monitor.checkpoints.reading.contents import COMPLEX, ITEM_SIZES, TensorRef, row_major
from dse_monitor.checkpoints.reading.zip_directory import data_offset, inflate
from dse_monitor.errors import CheckpointError

try:  # uses the processor's carry-less multiplication: the sum costs next to nothing beside the read
    from zlib_ng.zlib_ng import adler32, crc32
except ImportError:  # no wheel for this machine (see the marker in pyproject.toml)
    from zlib import adler32, crc32

_STEP = 1 << 20  # bytes read and summed at a time: small enough to stay in a core's cache in between; ours
_PARALLEL_FROM = 1 << 25  # bytes from which a second thread is worth starting; ours
_THREADS = 4


@dataclass(slots=True)
class _Sums:
    """Two checksums of one tensor's bytes, 64 bits together: they tell contents apart, against no forger.

    A cryptographic digest would take as long as the read itself.
    """

    crc: int = 0
    adler: int = 1

    def update(self, piece: memoryview) -> None:
        self.crc = crc32(piece, self.crc)
        self.adler = adler32(piece, self.adler)

    def digest(self) -> bytes:
        return self.crc.to_bytes(4, "little") + self.adler.to_bytes(4, "little")


@dataclass(slots=True)
class _Wanted:
    """A stretch of a record that somebody wants, where its bytes go, and what is fed with them on the way."""

    start: int
    target: memoryview
    sums: _Sums | None = None


def read_tensors(refs: Sequence[TensorRef], digests: list[bytes] | None = None) -> list[memoryview]:
    """Contiguous row-major bytes of each tensor, little-endian, each in writable memory of its own.

    Args:
        refs: what to read; tensors of one record cost one pass over it.
        digests: eight bytes for each tensor are appended here, made while its own are in the cache; they
            differ where contents differ.

    Raises:
        CorruptCheckpoint: a checksum differs, or the file changed since it was opened.
        IncompleteCheckpoint: the file ends too early or is gone.
    """
    results = [_fresh(ref.nbytes) for ref in refs]
    sums = [_Sums() for _ in refs]
    wanted = sums if digests is not None else [None] * len(refs)
    views = [view for view in zip(refs, results, wanted, strict=True) if not view[0]._chunks]
    fed = _read_views(views)
    for ref, target in zip(refs, results, strict=True):
        if ref._chunks:
            _join(ref, target)
    if digests is not None:
        for each, target in zip(sums, results, strict=True):
            if id(each) not in fed:
                each.update(target)
            digests.append(each.digest())
    return results


def _fresh(nbytes: int) -> memoryview:
    """Writable memory that is not filled first: filling it would cost as much as reading."""
    try:
        return memoryview(np.empty(nbytes, np.uint8))  # pyright: ignore[reportArgumentType]
    except (MemoryError, ValueError):
        raise CheckpointError(
            f"a tensor of {nbytes:,} bytes does not fit into memory; free some, or use a larger machine"
        ) from None


def _read_views(views: Sequence[tuple[TensorRef, memoryview, _Sums | None]]) -> set[int]:
    """Fill every target from its storage; returns the identities of the sums made on the way."""
    by_record: dict[Record, list[_Wanted]] = {}
    later: list[Callable[[], None]] = []
    fed: set[int] = set()
    for ref, target, sums in views:
        storage = ref._storage
        if storage is None or not ref.nbytes:
            continue
        extent = _extent(ref)
        straight = _is_row_major(ref)
        span = target if straight else _fresh(extent)
        if storage.record is None:
            span[:] = memoryview(storage.inline or b"")[ref._offset : ref._offset + extent]
        else:
            wanted = _Wanted(ref._offset, span)
            whole = wanted.start == 0 and len(span) == storage.record.nbytes and storage.record.packed is None
            if sums is not None and straight and whole and not storage.big_endian:
                if storage.record not in by_record:  # the first of a record is the one that is read in place
                    wanted.sums = sums
                    fed.add(id(sums))
            by_record.setdefault(storage.record, []).append(wanted)
        if not straight:
            later.append(lambda ref=ref, span=span, target=target: _gather(ref, span, target))
        if storage.big_endian:
            later.append(lambda ref=ref, target=target: _swap(ref, target))
    by_source: dict[ByteSource, list[Record]] = {}
    for record in by_record:
        by_source.setdefault(record.source, []).append(record)
    for source, records in by_source.items():
        records.sort(key=lambda record: record.offset)
        with source.open() as descriptor:
            _read_records(descriptor, [(record, by_record[record]) for record in records])
    for step in later:
        step()
    return fed


def _read_records(descriptor: int, jobs: list[tuple[Record, list[_Wanted]]]) -> None:
    total = sum(record.nbytes for record, _ in jobs)
    threads = min(_THREADS, os.cpu_count() or 1, len(jobs))
    if threads < 2 or total < _PARALLEL_FROM:
        for record, wanted in jobs:
            _read_record(descriptor, record, wanted)
        return
    # Reading and summing both release the interpreter's lock, so records are read side by side.
    with ThreadPoolExecutor(threads, thread_name_prefix="checkpoint-read") as pool:
        for _ in pool.map(lambda job: _read_record(descriptor, *job), jobs):
            pass


def _read_record(descriptor: int, record: Record, wanted: list[_Wanted]) -> None:
    """One pass over a record: copy what is wanted, sum everything when there is a sum to compare."""
    start = data_offset(descriptor, record) if record.member else record.offset
    if record.packed is not None:
        content = memoryview(inflate(descriptor, record, start))
        for item in wanted:
            item.target[:] = content[item.start : item.start + len(item.target)]
        return
    whole = next((item for item in wanted if item.start == 0 and len(item.target) == record.nbytes), None)
    sums = whole.sums if whole else None
    if record.crc is None and sums is None:
        for item in wanted:
            read_into(descriptor, record.source, start + item.start, item.target)
        return
    scratch = None if whole else memoryview(bytearray(min(_STEP, record.nbytes)))
    crc = 0
    for position in range(0, record.nbytes, _STEP):
        end = min(position + _STEP, record.nbytes)
        piece = whole.target[position:end] if whole else scratch[: end - position]  # type: ignore[index]
        read_into(descriptor, record.source, start + position, piece)
        if sums is not None:
            sums.update(piece)
        else:
            crc = crc32(piece, crc)
        for item in wanted:
            low, high = max(position, item.start), min(end, item.start + len(item.target))
            if item is not whole and low < high:
                item.target[low - item.start : high - item.start] = piece[low - position : high - position]
    if record.crc is None:
        return
    if sums is not None:
        crc = sums.crc
    if crc != record.crc:
        raise record.fail(
            f"has checksum {crc:08x}, its directory says {record.crc:08x}: its bytes were damaged or mixed"
        )


def _extent(ref: TensorRef) -> int:
    """Bytes from the first to the last element in the storage."""
    reach = sum((size - 1) * step for size, step in zip(ref.shape, ref._stride, strict=True))
    return (reach + 1) * ITEM_SIZES[ref.dtype]


def _is_row_major(ref: TensorRef) -> bool:
    expected = row_major(ref.shape)
    return all(
        size == 1 or have == want for size, have, want in zip(ref.shape, ref._stride, expected, strict=True)
    )


def _gather(ref: TensorRef, span: memoryview, target: memoryview) -> None:
    """Copy a strided view into row-major order."""
    itemsize = ITEM_SIZES[ref.dtype]
    strides = tuple(step * itemsize for step in ref._stride)
    view = np.ndarray(ref.shape, f"V{itemsize}", buffer=span, strides=strides)
    np.ndarray(ref.shape, f"V{itemsize}", buffer=target)[...] = view


def _swap(ref: TensorRef, target: memoryview) -> None:
    """Turn big-endian elements round, in place."""
    size = ITEM_SIZES[ref.dtype] // (2 if ref.dtype in COMPLEX else 1)
    if size > 1:
        np.frombuffer(target, f"u{size}").byteswap(inplace=True)


def _join(ref: TensorRef, target: memoryview) -> None:
    """Put a tensor together from the boxes it was saved in. The boxes are known to fill it exactly."""
    itemsize = ITEM_SIZES[ref.dtype]
    whole = np.ndarray(ref.shape, f"V{itemsize}", buffer=target)
    for chunk in ref._chunks:
        if not math.prod(chunk.sizes):
            continue
        part = open_piece(chunk, ref.dtype)
        content = _fresh(part.nbytes)
        _read_views([(part, content, None)])
        box = tuple(slice(low, low + size) for low, size in zip(chunk.offsets, chunk.sizes, strict=True))
        whole[box] = np.ndarray(part.shape, f"V{itemsize}", buffer=content)
