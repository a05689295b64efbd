"""Records as the tensors and summaries of TensorBoard's own messages; no torch."""

# pyright: reportAttributeAccessIssue=false
# (tensorboard's generated protocol modules make their classes at run time)

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from typing import Any

from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_SCALAR,
    DATA_CLASS_TENSOR,
    Summary,
    SummaryMetadata,
)
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_FLOAT, DT_STRING

from dse_monitor.metric.components import Components
from dse_monitor.runs.record import PLUGIN, POINT_COLUMNS, SCHEMA, STATUS_CODES, Alert, Evaluation, to_json
from dse_monitor.runs.series import is_within_epoch

_COMPONENT_COLUMNS = [
    name for name in POINT_COLUMNS if name in {f.name for f in dataclasses.fields(Components)}
]


def point(evaluation: Evaluation) -> list[float]:
    """The row of an evaluation, in the order of POINT_COLUMNS; NaN where a number is missing."""
    source, settings = evaluation.source, evaluation.settings
    row: dict[str, float | None] = {
        "schema": SCHEMA,
        "seq": evaluation.seq,
        "status": STATUS_CODES[evaluation.status],
        "epoch": source.epoch,
        "step": source.step,
        "mtime": source.mtime,
        "wall_time": evaluation.wall_time,
        "seconds": evaluation.seconds.get("total"),
        "settings": None if settings is None else int(settings.fingerprint, 16),
        "file": _whole_number(source.path),
        "within": float(is_within_epoch(source)),
        "content": _whole_number(source.content) if source.content else None,
    }
    if evaluation.status == "scored" and evaluation.components is not None:
        row.update({name: getattr(evaluation.components, name) for name in _COMPONENT_COLUMNS})
    values = [row.get(name) for name in POINT_COLUMNS]
    return [math.nan if value is None or not math.isfinite(value) else float(value) for value in values]


def metadata(evaluation: Evaluation) -> dict[str, Any]:
    """What the row of an evaluation does not say, as plain JSON types.

    The source's fields but the times and positions that the row holds, and: ``seq``, ``status``, ``reason``,
    ``error``, ``settings`` (the fingerprint; the state of the run spells it out), ``seconds`` by stage,
    ``companions``, ``map_file``, ``images``, ``tokens`` and ``width``.
    """
    data = to_json(evaluation)
    components = data["components"] or {}
    return {
        **{name: value for name, value in data["source"].items() if name not in ("mtime", "epoch", "step")},
        **{
            name: data[name]
            for name in ("seq", "status", "reason", "error", "seconds", "companions", "map_file")
        },
        **{name: components.get(name, 0) for name in ("images", "tokens", "width")},
        "settings": "" if evaluation.settings is None else evaluation.settings.fingerprint,
    }


def _whole_number(text: str) -> int:
    """48 bits of a digest of a text, which float64 holds exactly."""
    return int(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12], 16)


def event_time(record: Evaluation | Alert) -> float:
    """Time of an event; TensorBoard drops events whose time is not a number."""
    return record.wall_time if math.isfinite(record.wall_time) else 0.0


def tab_value(tag: str, tensor: TensorProto, *, described: bool) -> Summary.Value:
    """A value for the DSE tab; TensorBoard needs a description of the first of each tag alone."""
    value = Summary.Value(tag=tag, tensor=tensor)
    if not described:
        value.metadata.CopyFrom(describe(PLUGIN, "See tb_plugin/http_api.md."))
    return value


def scalar_value(tag: str, number: float, *, described: set[str], text: str = "") -> Summary.Value:
    """A plain scalar for TensorBoard's own tab, described if its tag is new, which is then added."""
    value = Summary.Value(tag=tag, tensor=TensorProto(dtype=DT_FLOAT, float_val=[number]))
    if tag not in described:
        described.add(tag)
        value.metadata.CopyFrom(describe("scalars", text, DATA_CLASS_SCALAR))
    return value


def describe(plugin: str, text: str, data_class: Any = DATA_CLASS_TENSOR) -> SummaryMetadata:
    """What TensorBoard needs to know of a tag: which plugin it is for, and what it is in words."""
    return SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin),
        data_class=data_class,
        summary_description=text,
    )


def doubles(row: list[float]) -> TensorProto:
    """Numbers [n] as float64 [n]."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(row))])
    return TensorProto(dtype=DT_DOUBLE, tensor_shape=shape, tensor_content=struct.pack(f"<{len(row)}d", *row))


def unpack_doubles(tensor: TensorProto) -> tuple[float, ...]:
    """The inverse of :func:`doubles`; nothing for a tensor of another kind."""
    content = tensor.tensor_content
    return struct.unpack(f"<{len(content) // 8}d", content[: len(content) // 8 * 8])


def json_string(data: dict[str, Any]) -> TensorProto:
    """Plain JSON types as string [1]."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return bytes_string(text.encode("utf-8", "replace"))


def bytes_string(content: bytes) -> TensorProto:
    """Bytes as string [1]."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    return TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[content])
