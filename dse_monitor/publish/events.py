"""Evaluations and alerts as TensorBoard event data, made of tensorboard's own messages; no torch.

Everything lies in ``<RUN>/dse/``, a folder of its own: a second writer in the trainer's folder would make
TensorBoard lose points of one of the two. The files can always be written again from the ledger.

====================  ==============  ===================================================================
tag                   plugin name     content
====================  ==============  ===================================================================
``dse/point/<k>``     ``dse``         float64 [POINT_COLUMNS], one event per evaluation
``dse/meta/<k>``      ``dse``         string [1], JSON: what the point's numbers do not say (`metadata`)
``dse/alert/<k>``     ``dse``         string [1], JSON of an Alert (`record.to_json`)
``dse/map/<seq>``     ``dse``         string [1], PNG: the map of that evaluation; ``images`` for <seq>: the
                                      example images, WebP; thinned on long runs, see publish/pictures.py
``dse/state``         ``dse_state``   string [1], JSON of `publish.state.run_state`; the last one counts
``dse/score`` ...     ``scalars``     float32, for TensorBoard's own Time Series tab; never read back
====================  ==============  ===================================================================

TensorBoard keeps ten events per tag at least, whatever its loader and flags, so a tag holds ten events;
``<k>`` is the sequence number of its first. It also takes a falling step for a restart and forgets what came
before, so the step of an event is the record's sequence number and the optimiser step is part of the payload.
The plain scalars carry the true step and may be thinned by TensorBoard.
"""

# pyright: reportAttributeAccessIssue=false
# (tensorboard's generated protocol modules make their classes at run time)

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_SCALAR,
    DATA_CLASS_TENSOR,
    Summary,
    SummaryMetadata,
)
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_FLOAT, DT_STRING

from dse_monitor import atomic
from dse_monitor.errors import OutputError
from dse_monitor.metric.components import Components
from dse_monitor.publish import frames, pictures
from dse_monitor.runs.record import (
    PLUGIN,
    PLUGIN_STATE,
    POINT_COLUMNS,
    SCALAR_TAGS,
    SCHEMA,
    STATUS_CODES,
    TAG_ALERT,
    TAG_MAP,
    TAG_META,
    TAG_POINT,
    TAG_STATE,
    Alert,
    Evaluation,
    to_json,
)
from dse_monitor.runs.series import GrowingLambda

PENDING_LIMIT = 500  # events queued before they are written while a folder is brought up to date; ours
EVENTS_PER_TAG = 10  # what both of TensorBoard's loaders keep without being asked


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
        "file": int(hashlib.sha256(source.path.encode("utf-8", "replace")).hexdigest()[:12], 16),
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


class EventWriter:
    """Appends to one new event file in a folder; opened at the first flush, so that making one cannot fail.

    A failed write raises OutputError once. After that the writer is dead (`alive` is False): it ignores what
    it is given, and what lies in the file stays readable. `reopen` starts a new file and writes what is
    missing. Not for several threads.

    Args:
        folder: the run's output folder; made if missing.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = Path(folder)
        self.alive = True
        self._clock = clock
        self._pending: list[bytes] = []
        self._output: _EventFile | None = None
        self._reset()

    def _reset(self) -> None:
        self._points = _Shards(TAG_POINT, TAG_META)
        self._alerts = _Shards(TAG_ALERT)
        self._state_step = 0
        self._described: set[str] = set()
        self._lambdas: dict[str, GrowingLambda] = {}
        self._painted = 0
        self._pictures: set[str] = set()
        self._images = b""

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Queue the point, its metadata and, if scored, the plain scalars and perhaps its map.

        Raises:
            ValueError: the evaluation has no sequence number yet: the ledger gives it one.
        """
        self._remember(evaluation)
        if not self.alive:
            return
        values = [_doubles(point(evaluation)), _string(metadata(evaluation))]
        self._queue(self._points, evaluation, values)
        self._queue_scalars(evaluation)
        self._queue_map(evaluation)

    def add_alert(self, alert: Alert) -> None:
        """Queue one change of an alert's state.

        Raises:
            ValueError: the alert has no sequence number yet: the ledger gives it one.
        """
        if self.alive:
            self._queue(self._alerts, alert, [_string(to_json(alert))])

    def set_state(self, state: dict[str, Any]) -> None:
        """Queue the state of the run (see `publish.state.run_state`); it replaces the one before."""
        if not self.alive:
            return
        now = self._clock()
        self._state_step = max(self._state_step + 1, int(now * 1e6))
        value = Summary.Value(tag=TAG_STATE, tensor=_string(state))
        if TAG_STATE not in self._described:
            self._described.add(TAG_STATE)
            value.metadata.CopyFrom(_describe(PLUGIN_STATE, "State of the run and of its watcher."))
        self._append(Event(wall_time=now, step=self._state_step, summary=Summary(value=[value])))

    def catch_up(self, evaluations: Iterable[Evaluation], alerts: Iterable[Alert]) -> int:
        """Queue those records that no event file of the folder holds; returns how many.

        For the start of a watcher (one that was killed may have recorded what it did not publish) and for
        `reopen`. Reads the folder's event files once. Records come in the order of their sequence numbers, so
        that none need be kept.

        Raises:
            OutputError: see `flush`; what is queued does not wait for the last record.
        """
        found = published(self.folder)
        self._points.continue_after(found.last_step)
        self._alerts.continue_after(found.last_step)
        self._pictures |= found.pictures
        missing = 0
        for evaluation in evaluations:
            if evaluation.seq in found.evaluations:
                self._remember(evaluation)
                self._queue_map(evaluation)
            else:
                missing += 1
                self.add_evaluation(evaluation)
            if len(self._pending) >= PENDING_LIMIT:
                self.flush()
        for alert in sorted(alerts, key=lambda record: record.seq):
            if (alert.seq, alert.key) not in found.alerts:
                missing += 1
                self.add_alert(alert)
        return missing

    def reopen(
        self, evaluations: Iterable[Evaluation], alerts: Iterable[Alert], state: dict[str, Any]
    ) -> None:
        """Start a new file with all that the folder lacks; the writer is alive again.

        Raises:
            OutputError: still impossible; the writer stays dead.
        """
        self._drop()
        self._reset()
        self.alive = True
        self.catch_up(evaluations, alerts)
        self.set_state(state)
        self.flush()

    def flush(self) -> None:
        """Hand everything queued to the operating system, whole events or nothing.

        Raises:
            OutputError: it could not be written; said once, then the writer is dead.
        """
        if not self.alive or not self._pending:
            return
        try:
            if self._output is None:
                self._output = _EventFile(_event_path(self.folder, self._clock()), self._clock())
            self._output.append(self._pending)
        except OSError as error:
            self._drop()
            self.alive = False
            raise OutputError(
                f"{self.folder}: event data cannot be written ({error.strerror or error}); the ledger keeps "
                "the scores. Free some space or fix the permissions: the missing events are added then."
            ) from error
        self._pending.clear()

    def close(self) -> None:
        """Flush and close the file. A dead writer closes silently."""
        try:
            self.flush()
        finally:
            self._drop()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self) -> None:
        self._pending.clear()
        if self._output is not None:
            self._output.close()
            self._output = None

    def _append(self, event: Event) -> None:
        self._pending.append(event.SerializeToString())

    def _queue(self, shards: _Shards, record: Evaluation | Alert, tensors: list[TensorProto]) -> None:
        if record.seq <= 0:
            raise ValueError(f"sequence number {record.seq}: expected one given by the ledger, above 0")
        values = []
        step, tags, first = shards.next(record.seq)
        for tag, tensor in zip(tags, tensors, strict=True):
            value = Summary.Value(tag=tag, tensor=tensor)
            if first:
                value.metadata.CopyFrom(_describe(PLUGIN, "See tb_plugin/http_api.md."))
            values.append(value)
        self._append(Event(wall_time=_time(record), step=step, summary=Summary(value=values)))

    def _remember(self, evaluation: Evaluation) -> None:
        """Keep what the adaptive lambda needs, one series per settings."""
        if evaluation.status == "scored" and evaluation.components and evaluation.settings:
            lam = self._lambdas.setdefault(evaluation.settings.fingerprint, GrowingLambda())
            lam.add(evaluation.components.separability, evaluation.components.m_dim)

    def _queue_scalars(self, evaluation: Evaluation) -> None:
        parts, settings = evaluation.components, evaluation.settings
        if evaluation.status != "scored" or parts is None or settings is None:
            return
        known = self._lambdas[settings.fingerprint]
        numbers = (
            parts.dse(known.value),
            parts.separability,
            parts.m_inter,
            parts.m_intra_image,
            parts.m_intra_batch,
        )
        values = []
        for tag, number in zip(SCALAR_TAGS, (*numbers, parts.m_dim), strict=True):
            tensor = TensorProto(dtype=DT_FLOAT, float_val=[number])
            value = Summary.Value(tag=tag, tensor=tensor)
            if tag not in self._described:
                self._described.add(tag)
                value.metadata.CopyFrom(_describe("scalars", _SCALAR_TEXT.get(tag, ""), DATA_CLASS_SCALAR))
            values.append(value)
        step = _plain_step(evaluation, known.count)
        self._append(Event(wall_time=_time(evaluation), step=step, summary=Summary(value=values)))

    def _queue_map(self, evaluation: Evaluation) -> None:
        """Queue the map of an evaluation if it is one of those published, and the images it shows if new."""
        if not evaluation.map_file:
            return
        self._painted += 1
        if not pictures.is_published(self._painted - 1) or str(evaluation.seq) in self._pictures:
            return
        content = pictures.read_picture(self.folder, evaluation.map_file)
        if content:
            self._pictures.add(str(evaluation.seq))
            self._queue_picture(str(evaluation.seq), content, evaluation.seq)
        images = pictures.read_picture(self.folder, pictures.ORIGINALS)
        if images and images != self._images:
            self._images = images
            self._queue_picture(pictures.IMAGES, images, int(self._clock() * 1e6))

    def _queue_picture(self, name: str, content: bytes, step: int) -> None:
        value = Summary.Value(tag=TAG_MAP + name, tensor=_bytes(content))
        value.metadata.CopyFrom(_describe(PLUGIN, "See tb_plugin/http_api.md."))
        self._append(Event(wall_time=self._clock(), step=step, summary=Summary(value=[value])))


_SCALAR_TEXT = {
    SCALAR_TAGS[0]: "DSE with the lambda known when the checkpoint was measured. The DSE tab uses one lambda "
    "for the whole run and is the place to compare checkpoints.",
}


@dataclass
class Published:
    """What the event files of a folder hold.

    Attributes:
        evaluations: sequence numbers of the points.
        alerts: sequence number and key of each alert.
        last_step: largest step of a point or an alert; what follows must lie above it.
        pictures: names of the maps: the sequence number of the evaluation, or ``images``.
    """

    evaluations: set[int] = field(default_factory=set)
    alerts: set[tuple[int, str]] = field(default_factory=set)
    last_step: int = 0
    pictures: set[str] = field(default_factory=set)


def published(folder: Path) -> Published:
    """Read which records the event files of a folder hold; a torn last event counts as missing."""
    found = Published()
    for path in _event_files(folder):
        for event in frames.events(path):
            for value in event.summary.value:
                if value.tag.startswith(TAG_POINT):
                    row = dict(zip(POINT_COLUMNS, _unpack_doubles(value.tensor), strict=False))
                    if math.isfinite(row.get("seq", math.nan)):
                        found.evaluations.add(int(row["seq"]))
                        found.last_step = max(found.last_step, event.step)
                elif value.tag.startswith(TAG_MAP):
                    found.pictures.add(value.tag.removeprefix(TAG_MAP))
                elif value.tag.startswith(TAG_ALERT):
                    with contextlib.suppress(ValueError, LookupError, TypeError):  # not one of ours
                        alert = json.loads(value.tensor.string_val[0])
                        found.alerts.add((alert["seq"], alert["key"]))
                        found.last_step = max(found.last_step, event.step)
    return found


def rebuild(
    folder: Path, evaluations: Iterable[Evaluation], alerts: Iterable[Alert], state: dict[str, Any]
) -> Path:
    """Write all event data again: one new file beside the old ones, which are removed once it is whole.

    A reader that sees both for a moment finds the same sequence numbers twice and keeps one of each.

    Args:
        folder: the run's output folder.
        evaluations: every evaluation of the run, in any order.
        alerts: every alert, in any order.
        state: see `publish.state.run_state`.

    Returns:
        The new event file.

    Raises:
        OutputError: it could not be written; the old files are untouched.
    """
    with _replacing_files(Path(folder)) as (draft, target), EventWriter(folder) as writer:
        writer._output = _EventFile(draft, time.time())
        for evaluation in sorted(evaluations, key=lambda record: record.seq):
            writer.add_evaluation(evaluation)
        for alert in sorted(alerts, key=lambda record: record.seq):
            writer.add_alert(alert)
        writer.set_state(state)
    return target


def rebuild_numbers(
    folder: Path, tag: str, measured: Iterable[tuple[Evaluation, float, dict[str, float]]]
) -> Path:
    """Write further numbers of evaluations, in a folder of their own, in place of what was there.

    Args:
        folder: below the run's output folder; TensorBoard takes it for a run.
        tag: prefix of the plain scalars' tags.
        measured: evaluations in the order of their sequence numbers, when each number was found (seconds
            since 1970), and the numbers by name; those that are not finite are left out.

    Raises:
        OutputError: it could not be written; the old files are untouched.
    """
    shards, described, lines = _Shards(TAG_META), set(), []
    for count, (evaluation, when, numbers) in enumerate(measured, 1):
        finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
        step, tags, first = shards.next(evaluation.seq)
        joined = Summary.Value(tag=tags[0], tensor=_string({"seq": evaluation.seq, "companions": finite}))
        if first:
            joined.metadata.CopyFrom(_describe(PLUGIN, "See tb_plugin/http_api.md."))
        lines.append(Event(wall_time=when, step=step, summary=Summary(value=[joined])))
        values = []
        for name, number in finite.items():
            value = Summary.Value(tag=tag + name, tensor=TensorProto(dtype=DT_FLOAT, float_val=[number]))
            if name not in described:
                described.add(name)
                value.metadata.CopyFrom(_describe("scalars", "", DATA_CLASS_SCALAR))
            values.append(value)
        lines.append(
            Event(wall_time=when, step=_plain_step(evaluation, count), summary=Summary(value=values))
        )
    with _replacing_files(Path(folder)) as (draft, target):
        file = _EventFile(draft, time.time())
        try:
            file.append([line.SerializeToString() for line in lines])
        finally:
            file.close()
    return target


@contextlib.contextmanager
def _replacing_files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A path to write event data to, and the name it gets, once whole, in place of all that was there.

    Raises:
        OutputError: it could not be written; the old files are untouched.
    """
    target = _event_path(folder, time.time())
    try:
        with atomic.replacing(target, name="rebuilding") as draft:  # TensorBoard reads all named as events
            yield draft, target
            old = _event_files(folder)
        for path in old:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: event data cannot be rebuilt ({error.strerror or error}).") from error


class _EventFile:
    """One file of framed events; a failed append leaves what was there before."""

    def __init__(self, path: Path, now: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._size = 0
        self._file: IO[bytes] = open(path, "xb")
        self.append([Event(wall_time=now, file_version="brain.Event:2").SerializeToString()])

    def append(self, events: list[bytes]) -> None:
        try:
            for event in events:
                self._file.write(frames.frame(event))
            self._file.flush()
        except OSError:
            self.close()
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._size)
                if self._size == 0:
                    self._path.unlink()
            raise
        self._size = self._file.tell()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # bytes that a failed flush left behind fail again
            self._file.close()


class _Shards:
    """Names of tags that hold ten events each, and growing steps."""

    def __init__(self, *prefixes: str) -> None:
        self._prefixes = prefixes
        self._step = 0
        self._first = 0
        self._count = EVENTS_PER_TAG

    def continue_after(self, step: int) -> None:
        """Let steps grow over those of an earlier writer, whose tags must not be used again."""
        self._step = max(self._step, step)

    def next(self, seq: int) -> tuple[int, list[str], bool]:
        """Step and tags of the next event, and whether they are new tags."""
        self._step = max(seq, self._step + 1)
        first = self._count == EVENTS_PER_TAG
        if first:
            self._first, self._count = self._step, 0
        self._count += 1
        return self._step, [f"{prefix}{self._first}" for prefix in self._prefixes], first


def _plain_step(evaluation: Evaluation, count: int) -> int:
    """Step of the plain scalars: optimiser steps, else epochs, else how many were measured."""
    position = evaluation.source.step if evaluation.source.step is not None else evaluation.source.epoch
    return count if position is None else round(position)


def _time(record: Evaluation | Alert) -> float:
    """Time of an event; TensorBoard drops events whose time is no number."""
    return record.wall_time if math.isfinite(record.wall_time) else 0.0


def _describe(plugin: str, text: str, data_class: Any = DATA_CLASS_TENSOR) -> SummaryMetadata:
    return SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin),
        data_class=data_class,
        summary_description=text,
    )


def _doubles(row: list[float]) -> TensorProto:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(row))])
    return TensorProto(dtype=DT_DOUBLE, tensor_shape=shape, tensor_content=struct.pack(f"<{len(row)}d", *row))


def _unpack_doubles(tensor: TensorProto) -> tuple[float, ...]:
    content = tensor.tensor_content
    return struct.unpack(f"<{len(content) // 8}d", content[: len(content) // 8 * 8])


def _string(data: dict[str, Any]) -> TensorProto:
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return _bytes(text.encode("utf-8", "replace"))


def _bytes(content: bytes) -> TensorProto:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    return TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[content])


_files_opened = itertools.count()


def _event_path(folder: Path, now: float) -> Path:
    name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{next(_files_opened)}"
    return folder / name


def _event_files(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("events.out.tfevents.*"))
