"""From TensorBoard's data provider to the columns that the page draws; knows nothing of HTTP.

Whatever lies in an event file may come from anybody: rows of a wrong type or length and texts that are no
JSON are counted and skipped, never trusted. Reading is incremental: a tag whose newest event is known is not
read again.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorboard.data.provider import RunTagFilter

from dse_monitor.record import (
    OUTPUT_FOLDER,
    PLUGIN,
    PLUGIN_STATE,
    POINT_COLUMNS,
    SCHEMA,
    TAG_ALERT,
    TAG_META,
    TAG_POINT,
    TAG_STATE,
)

ALL = 2**31 - 1  # a "downsample" larger than any series: the provider keeps everything
LOSS_POINTS = 20_000  # events of one scalar sent at most; more than any screen shows
SCALARS_LISTED = 500  # scalars offered for one run at most
JSON_BYTES = 1 << 20  # a longer text is not one of ours
COMPANIONS = 16  # companion metrics drawn at most
NAME_CHARACTERS = 64  # of a companion metric's name
RUNS_CACHED = 64  # runs whose points stay in memory; 10,000 checkpoints take 3 MB
IMAGE_BYTES = 4 << 20  # a larger feature map is not one of ours

Floats = np.ndarray


class Provider(Protocol):
    """What is used of TensorBoard's data provider."""

    def list_runs(self, ctx: Any, *, experiment_id: str) -> Sequence[Any]: ...  # noqa: D102

    def list_tensors(  # noqa: D102
        self, ctx: Any, *, experiment_id: str, plugin_name: str, run_tag_filter: Any = None
    ) -> dict[str, dict[str, Any]]: ...

    def read_tensors(  # noqa: D102
        self, ctx: Any, *, experiment_id: str, plugin_name: str, downsample: int, run_tag_filter: Any = None
    ) -> dict[str, dict[str, Sequence[Any]]]: ...

    def list_scalars(  # noqa: D102
        self, ctx: Any, *, experiment_id: str, plugin_name: str, run_tag_filter: Any = None
    ) -> dict[str, dict[str, Any]]: ...

    def read_scalars(  # noqa: D102
        self, ctx: Any, *, experiment_id: str, plugin_name: str, downsample: int, run_tag_filter: Any = None
    ) -> dict[str, dict[str, Sequence[Any]]]: ...


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
        last = int(self.table[-1, _SEQ]) if len(self.table) else 0
        return f"{last}-{len(self.table)}-{self.skipped}"


@dataclass(frozen=True)
class _Shard:
    newest: tuple[int, float]
    rows: Floats
    skipped: int


_SEQ = POINT_COLUMNS.index("seq")
_EMPTY = np.empty((0, len(POINT_COLUMNS)))


class Reader:
    """Reads one TensorBoard's DSE data; may be used by several threads.

    Args:
        provider: TensorBoard's data provider.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._shards: OrderedDict[tuple[str, str], dict[str, _Shard]] = OrderedDict()
        self._lock = threading.Lock()

    def runs(self, ctx: Any, experiment: str) -> list[dict[str, Any]]:
        """Every run with DSE data, oldest first; see http_api.md, ``runs``."""
        everything = sorted(
            self._provider.list_runs(ctx, experiment_id=experiment),
            key=lambda run: (math.inf if run.start_time is None else run.start_time, run.run_name),
        )
        position = {run.run_name: index for index, run in enumerate(everything)}
        states = self._states(ctx, experiment)
        unsaid = [name for name in position if name not in states and name.split("/")[-1] == OUTPUT_FOLDER]
        if unsaid:
            listed = self._provider.list_tensors(
                ctx, experiment_id=experiment, plugin_name=PLUGIN, run_tag_filter=RunTagFilter(runs=unsaid)
            )
            states.update({name: None for name in listed})
        found = []
        for run in everything:
            if run.run_name in states:
                name = trained_run(run.run_name)
                found.append(
                    {
                        "run": run.run_name,
                        "name": name,
                        "colour": position.get(name, position[run.run_name]),
                        "start": run.start_time,
                        "state": states[run.run_name],
                    }
                )
        return found

    def _states(self, ctx: Any, experiment: str) -> dict[str, dict[str, Any] | None]:
        read = self._provider.read_tensors(
            ctx,
            experiment_id=experiment,
            plugin_name=PLUGIN_STATE,
            downsample=1,  # the last
            run_tag_filter=RunTagFilter(tags=[TAG_STATE]),
        )
        states = {}
        for run, tags in read.items():
            values = tags.get(TAG_STATE, ())
            states[run] = _json_object(values[-1].numpy) if values else None
        return states

    def points(self, ctx: Any, experiment: str, run: str) -> Points:
        """The evaluations of a run; of several with one sequence number, the one read last."""
        listed = self._tags(ctx, experiment, run, TAG_POINT)
        key = (experiment, run)
        with self._lock:
            known = self._shards.get(key, {})
        stale = [
            tag
            for tag, series in listed.items()
            if tag not in known or known[tag].newest != (series.max_step, series.max_wall_time)
        ]
        fresh = {tag: shard for tag, shard in known.items() if tag in listed}
        for tag, values in self._read(ctx, experiment, run, stale).items():
            series = listed[tag]
            rows, skipped = decode_rows([value.numpy for value in values])
            fresh[tag] = _Shard((series.max_step, series.max_wall_time), rows, skipped)
        with self._lock:
            self._shards[key] = fresh
            self._shards.move_to_end(key)
            while len(self._shards) > RUNS_CACHED:
                self._shards.popitem(last=False)
        return join_shards({tag.removeprefix(TAG_POINT): shard for tag, shard in fresh.items()})

    def metadata(
        self, ctx: Any, experiment: str, run: str, seqs: Iterable[int], points: Points | None = None
    ) -> list[dict[str, Any]]:
        """What is known besides the numbers of the evaluations with these sequence numbers."""
        points = points or self.points(ctx, experiment, run)
        wanted = {float(seq) for seq in seqs}
        tags = {tag for seq, tag in zip(points.table[:, _SEQ], points.tags, strict=True) if seq in wanted}
        names = sorted(TAG_META + tag for tag in tags)
        found = {}
        for values in self._read(ctx, experiment, run, names).values():
            for value in values:
                data = _json_object(value.numpy)
                if data and isinstance(data.get("seq"), int) and data["seq"] in wanted:
                    found[data["seq"]] = data
        return [found[seq] for seq in sorted(found)]

    def companions(self, ctx: Any, experiment: str, run: str) -> tuple[list[str], Floats]:
        """Companion metrics of every evaluation: their names, and float64 [n, 1 + names], ``seq`` first."""
        points = self.points(ctx, experiment, run)
        names: dict[str, int] = {}
        values: dict[float, dict[str, float]] = {}
        tags = sorted({TAG_META + tag for tag in points.tags})
        for events in self._read(ctx, experiment, run, tags).values():
            for event in events:
                data = _json_object(event.numpy) or {}
                measured = data.get("companions")
                if not isinstance(measured, dict) or not isinstance(data.get("seq"), int):
                    continue
                numbers = {k: v for k, v in measured.items() if _is_number(v) and len(k) <= NAME_CHARACTERS}
                for name in sorted(numbers):
                    if name not in names and len(names) < COMPANIONS:
                        names[name] = len(names)
                values[data["seq"]] = numbers
        table = np.full((len(points.table), 1 + len(names)), np.nan)
        for row, seq in enumerate(points.table[:, _SEQ]):
            table[row, 0] = seq
            for name, number in values.get(seq, {}).items():
                if name in names:
                    table[row, 1 + names[name]] = number
        return list(names), table

    def alerts(self, ctx: Any, experiment: str, run: str) -> list[dict[str, Any]]:
        """Every change of an alert's state, oldest first, each once."""
        tags = list(self._tags(ctx, experiment, run, TAG_ALERT))
        found = {}
        for values in self._read(ctx, experiment, run, tags).values():
            for value in values:
                data = _json_object(value.numpy)
                if data and isinstance(data.get("seq"), int):
                    found[data["seq"], str(data.get("key", ""))] = data
        return [found[key] for key in sorted(found)]

    def scalars(self, ctx: Any, experiment: str, run: str) -> list[dict[str, Any]]:
        """Scalars that may be drawn beside a run's DSE, the likeliest training loss first."""
        every = [item.run_name for item in self._provider.list_runs(ctx, experiment_id=experiment)]
        for group in scalar_sources(run, every):
            listed = self._provider.list_scalars(
                ctx, experiment_id=experiment, plugin_name="scalars", run_tag_filter=RunTagFilter(runs=group)
            )
            found = [
                {"run": source, "tag": tag, "score": loss_score(tag), "max_step": series.max_step}
                for source in group
                for tag, series in listed.get(source, {}).items()
                if not tag.startswith(f"{PLUGIN}/")
            ]
            if found:
                found.sort(key=lambda item: (-item["score"], -item["max_step"], item["tag"], item["run"]))
                return found[:SCALARS_LISTED]
        return []

    def scalar(self, ctx: Any, experiment: str, run: str, tag: str) -> Floats:
        """One scalar of a run: float64 [n, 3] of step, wall time and value."""
        read = self._provider.read_scalars(
            ctx,
            experiment_id=experiment,
            plugin_name="scalars",
            downsample=LOSS_POINTS,
            run_tag_filter=RunTagFilter(runs=[run], tags=[tag]),
        )
        rows = [(datum.step, datum.wall_time, datum.value) for datum in read.get(run, {}).get(tag, ())]
        return np.array(rows, np.float64).reshape(-1, 3)

    def _tags(self, ctx: Any, experiment: str, run: str, prefix: str) -> dict[str, Any]:
        listed = self._provider.list_tensors(
            ctx, experiment_id=experiment, plugin_name=PLUGIN, run_tag_filter=RunTagFilter(runs=[run])
        )
        return {tag: series for tag, series in listed.get(run, {}).items() if tag.startswith(prefix)}

    def _read(self, ctx: Any, experiment: str, run: str, tags: list[str]) -> dict[str, Sequence[Any]]:
        if not tags:
            return {}

        def read(some: list[str]) -> dict[str, Sequence[Any]]:
            return self._provider.read_tensors(
                ctx,
                experiment_id=experiment,
                plugin_name=PLUGIN,
                downsample=ALL,
                run_tag_filter=RunTagFilter(runs=[run], tags=some),
            ).get(run, {})

        try:
            return read(tags)
        except (ValueError, TypeError):  # one malformed tensor spoils the reply for all
            found = {}
            for tag in tags:
                try:
                    found.update(read([tag]))
                except (ValueError, TypeError):
                    found[tag] = [_Malformed()]
            return found


class _Malformed:
    numpy = None


def decode_rows(values: Iterable[Any]) -> tuple[Floats, int]:
    """Rows of points, and how many values were no such rows.

    A row is float64 [C], C at least len(POINT_COLUMNS); more columns, of a newer minor version, are left out.
    Unusable: a larger schema, or a sequence number that is no positive whole number below 2**53.
    """
    rows, skipped = [], 0
    width = len(POINT_COLUMNS)
    for value in values:
        usable = isinstance(value, np.ndarray) and value.dtype == np.float64 and value.ndim == 1
        if not usable or len(value) < width:
            skipped += 1
            continue
        schema, seq = value[0], value[_SEQ]
        if not (1 <= schema <= SCHEMA and 0 < seq < 2**53 and seq == math.floor(seq)):
            skipped += 1
            continue
        rows.append(value[:width])
    return (np.stack(rows) if rows else _EMPTY), skipped


def join_shards(shards: dict[str, _Shard]) -> Points:
    """All rows in order of their sequence number, each once."""
    if not shards:
        return Points(_EMPTY, (), 0)
    table = np.concatenate([shard.rows for shard in shards.values()])
    tags = [tag for tag, shard in shards.items() for _ in range(len(shard.rows))]
    seq = table[:, _SEQ]
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


def trained_run(run: str) -> str:
    """The run that DSE data belongs to: ``exp1`` for ``exp1/dse``, ``.`` for ``dse``, else the name."""
    if run == OUTPUT_FOLDER:
        return "."
    return run.removesuffix(f"/{OUTPUT_FOLDER}")


def scalar_sources(run: str, every: Iterable[str]) -> list[list[str]]:
    """Groups of runs in which a run's training scalars may lie, the likeliest first.

    The run itself and then its ancestors one by one, the runs below it, and last the DSE data's own run.
    """
    trained = trained_run(run)
    existing = set(every)
    below = sorted(name for name in existing if trained == "." or name.startswith(f"{trained}/"))
    below = [name for name in below if name != run and name.split("/")[-1] != OUTPUT_FOLDER]
    groups = [[trained], below]
    parts = trained.split("/")
    groups += [["/".join(parts[:count])] for count in range(len(parts) - 1, 0, -1)]
    groups += [["."], [run]]
    seen: set[str] = set()
    chosen = []
    for group in groups:
        names = [name for name in group if name in existing and name not in seen]
        seen.update(names)
        if names:
            chosen.append(names)
    return chosen


LOSS_TAGS = (
    "train/loss",
    "train_loss",
    "loss",
    "loss/train",
    "train_loss_step",
    "train/loss_step",
    "train_loss_epoch",
    "train/loss_epoch",
    "training_loss",
    "total_loss",
    "train/total_loss",
)  # names under which common trainers log their loss, the likeliest first
_HELD_OUT = re.compile(r"(^|[/_.\-\s])(val|valid|validation|eval|test|dev)([/_.\-\s]|$)", re.IGNORECASE)
_LOSS = re.compile(r"loss|objective|nll", re.IGNORECASE)


def loss_score(tag: str) -> int:
    """How likely a scalar is the training loss: 100 downwards for known names, 60 or 50 for a telling one."""
    if tag.lower() in LOSS_TAGS:
        return 100 - LOSS_TAGS.index(tag.lower())
    if _HELD_OUT.search(tag):
        return 10 if _LOSS.search(tag) else 0
    if not _LOSS.search(tag):
        return 0
    return 60 if _LOSS.search(tag.split("/")[-1]) else 50


@dataclass(frozen=True)
class Folders:
    """Where runs lie on this machine; for feature maps, which are plain files.

    Attributes:
        roots: pairs of a run-name prefix (empty for none) and a folder.
    """

    roots: tuple[tuple[str, Path], ...]

    @classmethod
    def from_flags(cls, flags: Any) -> Folders:
        """Read ``--logdir`` or ``--logdir_spec``; addresses such as gs:// are left out."""
        logdir = getattr(flags, "logdir", None) or ""
        spec = getattr(flags, "logdir_spec", None) or ""
        parts = [("", logdir)] if logdir else [_named(part) for part in spec.split(",") if part]
        return cls(tuple((name, Path(path).expanduser()) for name, path in parts if "://" not in path))

    def image(self, run: str, map_file: str) -> tuple[bytes, str] | None:
        """A feature map and its media type; None unless it is an image inside the run's media folder.

        Args:
            run: name of the run that holds the DSE data.
            map_file: path relative to the run's output folder, as its metadata says.
        """
        path = self.image_path(run, map_file)
        if path is None:
            return None
        try:
            with open(path, "rb") as file:
                content = file.read(IMAGE_BYTES + 1)
        except OSError:
            return None
        for magic, media_type in _IMAGE_TYPES:
            if len(content) <= IMAGE_BYTES and magic.match(content):
                return content, media_type
        return None

    def image_path(self, run: str, map_file: str) -> str | None:
        """The file of a feature map, symbolic links resolved; None if it is missing or lies elsewhere."""
        if not _MAP_FILE.fullmatch(map_file):
            return None
        for prefix, root in self.roots:
            folder = _below(root, prefix, run)
            if folder is None:
                continue
            path = os.path.realpath(folder / map_file)
            if os.path.dirname(path) == os.path.realpath(folder / "media") and os.path.isfile(path):
                return path
        return None


IMAGES_FILE = "media/images.png"  # the original images, in the order of the tiles of every map
_MAP_FILE = re.compile(r"media/(?!\.)[A-Za-z0-9._-]{1,128}\.(png|webp)")
_IMAGE_TYPES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)


def _named(part: str) -> tuple[str, str]:
    """One entry of --logdir_spec: ``name:path`` or a path, told apart as TensorBoard does."""
    if ":" in part and not part.startswith("/") and "://" not in part:
        name, _, path = part.partition(":")
        return name, path
    return "", part


def _below(root: Path, prefix: str, run: str) -> Path | None:
    """The folder of a run below a root, or None if it cannot lie there."""
    if prefix:
        if run != prefix and not run.startswith(f"{prefix}/"):
            return None
        run = run[len(prefix) + 1 :] or "."
    if ".." in Path(run).parts or Path(run).is_absolute():
        return None
    return root / run


def _json_object(value: Any) -> dict[str, Any] | None:
    """The JSON object in a string tensor of one element, or None. NaN and infinities become None."""
    if not isinstance(value, np.ndarray) or value.size != 1:
        return None
    text = value.reshape(-1)[0]
    if not isinstance(text, (bytes, str)) or len(text) > JSON_BYTES:
        return None
    try:
        data = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
