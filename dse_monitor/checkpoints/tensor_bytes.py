"""From descriptions of tensors to their bytes: each record is read once and its checksum compared."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dse_monitor.checkpoints.byte_source import ByteSource, Record, read_into
from dse_monitor.checkpoints.contents import COMPLEX, ITEM_SIZES, TensorRef, row_major
from dse_monitor.checkpoints.pieces import open_piece
from dse_monitor.checkpoints.zip_directory import data_offset, inflate
from dse_monitor.errors import CheckpointError

try:  # uses the processor's carry-less multiplication: the sum costs next to nothing beside the read
    from zlib_ng.zlib_ng import crc32
except ImportError:  # no wheel for this machine (see the marker in pyproject.toml)
    from zlib import crc32

_STEP = 1 << 20  # bytes read and summed at a time: small enough to stay in a core's cache in between; ours
_PARALLEL_FROM = 1 << 25  # bytes from which a second thread is worth starting; ours
_THREADS = 4


@dataclass(slots=True)
class _Wanted:
    """A stretch of a record that somebody wants, and where its bytes go."""

    start: int
    target: memoryview


def read_tensors(refs: Sequence[TensorRef]) -> list[bytearray]:
    """Contiguous row-major bytes of each tensor, little-endian.

    Args:
        refs: what to read; tensors of one record cost one pass over it.

    Raises:
        CorruptCheckpoint: a checksum differs, or the file changed since it was opened.
        IncompleteCheckpoint: the file ends too early or is gone.
    """
    results: list[bytearray] = []
    views: list[tuple[TensorRef, bytearray]] = []
    joined: list[tuple[TensorRef, bytearray]] = []
    for ref in refs:
        try:
            results.append(bytearray(ref.nbytes))
        except MemoryError:
            raise CheckpointError(
                f"a tensor of {ref.nbytes:,} bytes does not fit into memory; free some, or use a larger "
                "machine"
            ) from None
        (joined if ref._chunks else views).append((ref, results[-1]))
    _read_views(views)
    for ref, target in joined:
        _join(ref, target)
    return results


def _read_views(views: list[tuple[TensorRef, bytearray]]) -> None:
    """Fill every target from its storage."""
    by_record: dict[Record, list[_Wanted]] = {}
    later: list[Callable[[], None]] = []
    for ref, target in views:
        storage = ref._storage
        if storage is None or not ref.nbytes:
            continue
        extent = _extent(ref)
        straight = _is_row_major(ref)
        span = target if straight else bytearray(extent)
        if storage.record is None:
            memoryview(span)[:] = memoryview(storage.inline or b"")[ref._offset : ref._offset + extent]
        else:
            by_record.setdefault(storage.record, []).append(_Wanted(ref._offset, memoryview(span)))
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
    if record.crc is None:
        for item in wanted:
            read_into(descriptor, record.source, start + item.start, item.target)
        return
    whole = next((item for item in wanted if item.start == 0 and len(item.target) == record.nbytes), None)
    scratch = None if whole else memoryview(bytearray(min(_STEP, record.nbytes)))
    crc = 0
    for position in range(0, record.nbytes, _STEP):
        end = min(position + _STEP, record.nbytes)
        piece = whole.target[position:end] if whole else scratch[: end - position]  # type: ignore[index]
        read_into(descriptor, record.source, start + position, piece)
        crc = crc32(piece, crc)
        for item in wanted:
            low, high = max(position, item.start), min(end, item.start + len(item.target))
            if item is not whole and low < high:
                item.target[low - item.start : high - item.start] = piece[low - position : high - position]
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


def _gather(ref: TensorRef, span: bytearray, target: bytearray) -> None:
    """Copy a strided view into row-major order."""
    itemsize = ITEM_SIZES[ref.dtype]
    strides = tuple(step * itemsize for step in ref._stride)
    view = np.ndarray(ref.shape, f"V{itemsize}", buffer=span, strides=strides)
    np.ndarray(ref.shape, f"V{itemsize}", buffer=target)[...] = view


def _swap(ref: TensorRef, target: bytearray) -> None:
    """Turn big-endian elements round, in place."""
    size = ITEM_SIZES[ref.dtype] // (2 if ref.dtype in COMPLEX else 1)
    if size > 1:
        np.frombuffer(target, f"u{size}").byteswap(inplace=True)


def _join(ref: TensorRef, target: bytearray) -> None:
    """Put a tensor together from the boxes it was saved in. The boxes are known to fill it exactly."""
    itemsize = ITEM_SIZES[ref.dtype]
    whole = np.ndarray(ref.shape, f"V{itemsize}", buffer=target)
    for chunk in ref._chunks:
        if not math.prod(chunk.sizes):
            continue
        part = open_piece(chunk, ref.dtype)
        content = bytearray(part.nbytes)
        _read_views([(part, content)])
        box = tuple(slice(low, low + size) for low, size in zip(chunk.offsets, chunk.sizes, strict=True))
        whole[box] = np.ndarray(part.shape, f"V{itemsize}", buffer=content)
