"""safetensors files: eight bytes of length, a JSON header, then all tensors without a gap.

Read by position instead of through the safetensors package, which maps the file. Format:
huggingface/safetensors README.
"""

from __future__ import annotations

import math
from typing import Any

from dse_monitor.checkpoints.reading.byte_source import ByteSource, Record, read_at
from dse_monitor.checkpoints.reading.contents import ITEM_SIZES, Opaque, Storage, TensorRef, row_major, shown
from dse_monitor.checkpoints.reading.plain_json import parse_json
from dse_monitor.errors import CorruptCheckpoint, IncompleteCheckpoint

MAX_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64", "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file that begins like this may be one: a length that fits in memory, then a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and head[9:10].strip(b' \t\r\n"}') == b""


def read_header(source: ByteSource) -> tuple[dict[str, Any], int]:
    """The parsed header and the position of the first tensor.

    Raises:
        IncompleteCheckpoint: the file ends inside its header.
        CorruptCheckpoint: the header is no JSON object.
    """
    with source.open() as descriptor:
        length = int.from_bytes(read_at(descriptor, source, 0, 8), "little")
        if length > MAX_HEADER:
            raise CorruptCheckpoint(
                f"{source.path} (safetensors) claims a header of {length:,} bytes, expected at most "
                f"{MAX_HEADER:,}"
            )
        if 8 + length > source.size:
            raise IncompleteCheckpoint(
                f"{source.path} (safetensors) ends at byte {source.size}, inside its header of {length} "
                "bytes; "
                "it is cut short or still being written"
            )
        raw = read_at(descriptor, source, 8, length)
    header = parse_json(raw, f"{source.path} (safetensors header)")
    if not isinstance(header, dict):
        raise CorruptCheckpoint(
            f"{source.path} (safetensors) has a {type(header).__name__} for header, expected an object"
        )
    return header, 8 + length


def read_safetensors(source: ByteSource) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors by name, and the header's free text (``__metadata__``).

    Raises:
        IncompleteCheckpoint: the file is shorter than its header says.
        CorruptCheckpoint: it is longer, or offsets and shapes contradict each other.
    """
    header, begin = read_header(source)
    metadata = header.pop("__metadata__", {})
    tensors: dict[str, Any] = {}
    spans = []
    for name, entry in header.items():
        dtype, shape, start, end = _entry(source, name, entry)
        spans.append((start, end, name))
        known = DTYPES.get(dtype)
        if known is None:
            tensors[name] = Opaque(
                f"safetensors.{dtype}", (shape,), note=f"not built: elements of type {dtype}"
            )
            continue
        nbytes = math.prod(shape) * ITEM_SIZES[known]
        if nbytes != end - start:
            raise CorruptCheckpoint(
                f"{source.path} (safetensors): tensor {shown(name)} has {end - start} bytes, {known} "
                f"{list(shape)} needs "
                f"{nbytes}; save the checkpoint again"
            )
        record = Record(source, name, begin + start, nbytes)
        tensors[name] = TensorRef(known, shape, nbytes, 0, row_major(shape), Storage(known, nbytes, record))
    expected = _covered(source, spans)
    if begin + expected > source.size:
        raise IncompleteCheckpoint(
            f"{source.path} (safetensors) has {source.size} bytes, its header describes {begin + expected}; "
            "it is cut short or still being written"
        )
    if begin + expected < source.size:
        raise CorruptCheckpoint(
            f"{source.path} (safetensors) has {source.size} bytes, its header describes {begin + expected}; "
            "something was appended to it, save it again"
        )
    return tensors, metadata if isinstance(metadata, dict) else {}


def _covered(source: ByteSource, spans: list[tuple[int, int, str]]) -> int:
    """Bytes of all tensors together; they follow each other without gap or overlap."""
    position = 0
    for start, end, name in sorted(spans):
        if start != position:
            raise CorruptCheckpoint(
                f"{source.path} (safetensors): tensor {shown(name)} begins at byte {start} of the data, "
                f"expected {position}; "
                "save the checkpoint again"
            )
        position = end
    return position


def _entry(source: ByteSource, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    fields = entry if isinstance(entry, dict) else {}
    dtype = fields.get("dtype")
    shape, offsets = _whole_numbers(fields.get("shape")), _whole_numbers(fields.get("data_offsets"))
    if (
        not isinstance(dtype, str)
        or shape is None
        or offsets is None
        or len(offsets) != 2
        or offsets[0] > offsets[1]
    ):
        raise CorruptCheckpoint(
            f"{source.path} (safetensors): the entry of {shown(name)} is {shown(entry)}, "
            "expected dtype, shape and data_offsets"
        )
    return dtype, shape, offsets[0], offsets[1]


def _whole_numbers(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) > 64:
        return None
    return tuple(value) if all(type(item) is int and 0 <= item < 1 << 62 for item in value) else None
