"""From TensorBoard's data provider to the columns that the page draws; knows nothing of HTTP.

Whatever lies in an event file may come from anybody: rows of a wrong type or length and texts that are no
JSON are counted and skipped, never trusted. Reading is incremental: a tag whose newest event is known is not
read again.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from tensorboard.data.provider import RunTagFilter

from dse_monitor.runs.record import (
    OUTPUT_FOLDER,
    PLUGIN,
    PLUGIN_STATE,
    PROBE_FOLDER,
    TAG_ALERT,
    TAG_MAP,
    TAG_META,
    TAG_POINT,
    TAG_STATE,
)
from dse_monitor.tb_plugin.line import Line, line_of
from dse_monitor.tb_plugin.pictures import picture
from dse_monitor.tb_plugin.points import SEQ, Floats, Points, Shard, decode_rows, join_shards
from dse_monitor.tb_plugin.training import loss_score, scalar_sources, trained_run

ALL = 2**31 - 1  # a "downsample" larger than any series: the provider keeps everything
LOSS_POINTS = 20_000  # events of one scalar sent at most; more than any screen shows
SCALARS_LISTED = 500  # scalars offered for one run at most
JSON_BYTES = 1 << 20  # a longer text is not one of ours
COMPANIONS = 16  # companion metrics drawn at most
NAME_CHARACTERS = 64  # of a companion metric's name
RUNS_CACHED = 64  # runs whose points stay in memory; 10,000 checkpoints take 3 MB


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


class Reader:
    """Reads one TensorBoard's DSE data; may be used by several threads.

    Args:
        provider: TensorBoard's data provider.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._shards: OrderedDict[tuple[str, str], dict[str, Shard]] = OrderedDict()
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
            fresh[tag] = Shard((series.max_step, series.max_wall_time), rows, skipped)
        with self._lock:
            self._shards[key] = fresh
            self._shards.move_to_end(key)
            while len(self._shards) > RUNS_CACHED:
                self._shards.popitem(last=False)
        return join_shards({tag.removeprefix(TAG_POINT): shard for tag, shard in fresh.items()})

    def line(self, ctx: Any, experiment: str, run: str, points: Points) -> Line:
        """Order, axis and positions of a run's checkpoints."""
        return line_of(points, lambda seqs: self.metadata(ctx, experiment, run, seqs, points))

    def metadata(
        self, ctx: Any, experiment: str, run: str, seqs: Iterable[int], points: Points | None = None
    ) -> list[dict[str, Any]]:
        """What is known besides the numbers of the evaluations with these sequence numbers."""
        points = points or self.points(ctx, experiment, run)
        wanted = {float(seq) for seq in seqs}
        tags = {tag for seq, tag in zip(points.table[:, SEQ], points.tags, strict=True) if seq in wanted}
        names = sorted(TAG_META + tag for tag in tags)
        found = {}
        for values in self._read(ctx, experiment, run, names).values():
            for value in values:
                data = _json_object(value.numpy)
                if data and isinstance(data.get("seq"), int) and data["seq"] in wanted:
                    found[data["seq"]] = data
        probed = self._probed(ctx, experiment, run)
        names = sorted({name for numbers in probed.values() for name in numbers})
        # A name without a number tells the page that there is such a metric.
        for seq, data in found.items() if names else ():
            measured = data["companions"] if isinstance(data.get("companions"), dict) else {}
            data["companions"] = {**measured, **dict.fromkeys(names), **probed.get(seq, {})}
        return [found[seq] for seq in sorted(found)]

    def _probed(self, ctx: Any, experiment: str, run: str) -> dict[int, dict[str, float]]:
        """What `dse-monitor probe` found of a run with labels, by sequence number."""
        beside = f"{run}/{PROBE_FOLDER}"
        tags = list(self._tags(ctx, experiment, beside, TAG_META))
        return _companions(self._read(ctx, experiment, beside, tags).values())

    def companions(self, ctx: Any, experiment: str, run: str) -> tuple[list[str], Floats]:
        """Companion metrics of every evaluation: their names, and float64 [n, 1 + names], ``seq`` first."""
        points = self.points(ctx, experiment, run)
        tags = sorted({TAG_META + tag for tag in points.tags})
        values = _companions(self._read(ctx, experiment, run, tags).values())
        for seq, numbers in self._probed(ctx, experiment, run).items():
            values[seq] = {**numbers, **values.get(seq, {})}
        every = dict.fromkeys(name for numbers in values.values() for name in sorted(numbers))
        names = {name: k for k, name in enumerate(list(every)[:COMPANIONS])}
        table = np.full((len(points.table), 1 + len(names)), np.nan)
        for row, seq in enumerate(points.table[:, SEQ]):
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

    def pictures(self, ctx: Any, experiment: str, run: str) -> set[str]:
        """Names of the maps in the event data: sequence numbers of evaluations, and ``images``."""
        return {tag.removeprefix(TAG_MAP) for tag in self._tags(ctx, experiment, run, TAG_MAP)}

    def picture(self, ctx: Any, experiment: str, run: str, name: str) -> tuple[bytes, str] | None:
        """A map of the event data and its media type, or None."""
        for values in self._read(ctx, experiment, run, [TAG_MAP + name]).values():
            tensor = values[-1].numpy if values else None
            if isinstance(tensor, np.ndarray) and tensor.size == 1:
                return picture(tensor.reshape(-1)[0])
        return None

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


def _companions(read: Iterable[Sequence[Any]]) -> dict[int, dict[str, float]]:
    """Numbers by sequence number and name in metadata; what is neither number nor name is left out."""
    values = {}
    for events in read:
        for event in events:
            data = _json_object(event.numpy) or {}
            measured = data.get("companions")
            if isinstance(measured, dict) and isinstance(data.get("seq"), int):
                values[data["seq"]] = {
                    name: value
                    for name, value in measured.items()
                    if _is_number(value) and len(name) <= NAME_CHARACTERS
                }
    return values


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
