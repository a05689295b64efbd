"""Rows of points: from the tensors of event data to one table, and from a table to a reply."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dse_monitor.runs.record import FIRST_COLUMNS, POINT_COLUMNS, SCHEMA

Floats = np.ndarray
SEQ = POINT_COLUMNS.index("seq")
EMPTY = np.empty((0, len(POINT_COLUMNS)))


@dataclass(frozen=True)
class Points:
    """All evaluations of a run.

    Attributes:
        table: float64 [n, len(POINT_COLUMNS)], sorted by sequence number, each once.
        tags: tag that holds each row, without its prefix [n].
        skipped: rows that could not be used.
    """

    table: Floats
    tags: tuple[str, ...]
    skipped: int

    @property
    def version(self) -> str:
        """Changes whenever the points do."""
        last = int(self.table[-1, SEQ]) if len(self.table) else 0
        return f"{last}-{len(self.table)}-{self.skipped}"


@dataclass(frozen=True)
class Shard:
    """The rows of one tag.

    Attributes:
        newest: step and time of its last event, which tell whether it has grown.
        rows: float64 [n, len(POINT_COLUMNS)].
        skipped: rows that could not be used.
    """

    newest: tuple[int, float]
    rows: Floats
    skipped: int


def decode_rows(values: Iterable[Any]) -> tuple[Floats, int]:
    """Rows of points, and how many values were no such rows.

    A row is float64 [C], C at least FIRST_COLUMNS. More columns than POINT_COLUMNS, of a newer minor
    version, are left out; those that a row of an earlier version lacks are NaN. Unusable: a larger schema,
    or a sequence number that is no positive whole number below 2**53.
    """
    rows, skipped = [], 0
    width = len(POINT_COLUMNS)
    for value in values:
        usable = isinstance(value, np.ndarray) and value.dtype == np.float64 and value.ndim == 1
        if not usable or len(value) < FIRST_COLUMNS:
            skipped += 1
            continue
        schema, seq = value[0], value[SEQ]
        if not (1 <= schema <= SCHEMA and 0 < seq < 2**53 and seq == math.floor(seq)):
            skipped += 1
            continue
        rows.append(np.append(value, np.full(max(width - len(value), 0), np.nan))[:width])
    return (np.stack(rows) if rows else EMPTY), skipped


def join_shards(shards: dict[str, Shard]) -> Points:
    """All rows in order of their sequence number, each once."""
    if not shards:
        return Points(EMPTY, (), 0)
    table = np.concatenate([shard.rows for shard in shards.values()])
    tags = [tag for tag, shard in shards.items() for _ in range(len(shard.rows))]
    seq = table[:, SEQ]
    order = np.argsort(seq, kind="stable")
    newest = np.append(seq[order][1:] != seq[order][:-1], True) if len(order) else np.zeros(0, bool)
    chosen = order[newest]
    skipped = sum(shard.skipped for shard in shards.values())
    return Points(table[chosen], tuple(tags[index] for index in chosen), skipped)


def pack(header: dict[str, Any], table: Floats) -> bytes:
    """A header and float64 columns in one reply.

    Layout: uint32 length of the header, the header as JSON padded with spaces so that the numbers start at a
    multiple of eight bytes, then the columns one after the other, all little-endian.
    """
    text = json.dumps({**header, "rows": len(table)}, allow_nan=False).encode()
    text += b" " * (-(4 + len(text)) % 8)
    columns = np.ascontiguousarray(table.T, dtype="<f8")
    return struct.pack("<I", len(text)) + text + columns.tobytes()
