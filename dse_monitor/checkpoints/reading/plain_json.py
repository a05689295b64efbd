"""JSON somebody else wrote, bounded before it is parsed: a small file cannot become gigabytes of lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dse_monitor.checkpoints.reading.byte_source import ByteSource
from dse_monitor.errors import CorruptCheckpoint, UnsafeCheckpoint

MAX_BYTES = 32 << 20  # of JSON proper, padding left out; ours: some 300,000 tensors
MAX_PARTS = 3_000_000  # commas, brackets and braces


def read_json_file(path: Path) -> Any:
    """A whole JSON file beside a checkpoint.

    Raises:
        IncompleteCheckpoint: it cannot be read.
        UnsafeCheckpoint: it is far larger than any such file.
        CorruptCheckpoint: it is no JSON.
    """
    source = ByteSource(path)
    if source.size > MAX_BYTES:
        raise UnsafeCheckpoint(f"{path} has {source.size:,} bytes, expected at most {MAX_BYTES:,} of JSON")
    return parse_json(source.read(0, source.size), str(path))


def parse_json(raw: bytes, where: str) -> Any:
    """Parse JSON text of unknown origin; keys that occur twice are refused.

    Raises:
        UnsafeCheckpoint: it has more parts than any checkpoint needs.
        CorruptCheckpoint: it is no JSON, or too deeply nested.
    """
    raw = raw.strip(b" \t\r\n")
    parts = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if len(raw) > MAX_BYTES or parts > MAX_PARTS:
        raise UnsafeCheckpoint(
            f"{where} holds {len(raw):,} bytes of JSON with {parts:,} parts, expected at most "
            f"{MAX_BYTES:,} and {MAX_PARTS:,}"
        )
    try:
        return json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{where} is no valid JSON ({error}); save the checkpoint again") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
