"""Reading through the data provider, without a server."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from dse_monitor.runs.record import POINT_COLUMNS, SCHEMA
from dse_monitor.tb_plugin.data import Reader

pytestmark = pytest.mark.fast


def row(seq, **columns):
    values = {"schema": SCHEMA, "seq": seq, "status": 0, **columns}
    return np.array([values.get(name, np.nan) for name in POINT_COLUMNS])


def event(value, step=0):
    return SimpleNamespace(numpy=value, step=step, wall_time=0.0)


def text(data):
    return np.array([data if isinstance(data, bytes) else json.dumps(data).encode()], dtype=object)


class FakeProvider:
    """TensorBoard's data provider over plain dictionaries; counts what is read."""

    def __init__(self, tensors=None, scalars=None, runs=()):
        self.tensors = tensors or {}  # run -> tag -> events
        self.scalar_data = scalars or {}
        self.run_names = list(runs) or sorted({*self.tensors, *self.scalar_data})
        self.read = []

    def list_runs(self, ctx, *, experiment_id):
        return [SimpleNamespace(run_name=name, start_time=k) for k, name in enumerate(self.run_names)]

    def list_tensors(self, ctx, *, experiment_id, plugin_name, run_tag_filter=None):
        return {
            run: {
                tag: SimpleNamespace(
                    max_step=max((e.step for e in events), default=0), max_wall_time=len(events)
                )
                for tag, events in tags.items()
                if self._is(plugin_name, tag)
            }
            for run, tags in self.tensors.items()
            if run_tag_filter is None or run_tag_filter.runs is None or run in run_tag_filter.runs
        }

    def read_tensors(self, ctx, *, experiment_id, plugin_name, downsample, run_tag_filter=None):
        found = {}
        for run, tags in self.tensors.items():
            if run_tag_filter.runs is not None and run not in run_tag_filter.runs:
                continue
            for tag, events in tags.items():
                if self._is(plugin_name, tag) and (run_tag_filter.tags is None or tag in run_tag_filter.tags):
                    if any(e.numpy is None for e in events):
                        raise ValueError("malformed tensor")
                    self.read.append(tag)
                    found.setdefault(run, {})[tag] = events[-downsample:]
        return found

    def list_scalars(self, ctx, *, experiment_id, plugin_name, run_tag_filter=None):
        return {
            run: {tag: SimpleNamespace(max_step=rows[-1][0]) for tag, rows in tags.items()}
            for run, tags in self.scalar_data.items()
            if run in run_tag_filter.runs
        }

    def read_scalars(self, ctx, *, experiment_id, plugin_name, downsample, run_tag_filter=None):
        return {
            run: {
                tag: [SimpleNamespace(step=s, wall_time=w, value=v) for s, w, v in rows]
                for tag, rows in tags.items()
                if tag in run_tag_filter.tags
            }
            for run, tags in self.scalar_data.items()
            if run in run_tag_filter.runs
        }

    @staticmethod
    def _is(plugin_name, tag):
        return (tag == "dse/state") == (plugin_name == "dse_state")


def test_only_tags_with_something_new_are_read_again():
    tags = {f"dse/point/{k}": [event(row(k + i), step=k + i) for i in range(10)] for k in (10, 20, 30)}
    provider = FakeProvider({"exp/dse": tags})
    reader = Reader(provider)
    assert len(reader.points(None, "", "exp/dse").table) == 30
    provider.read.clear()
    tags["dse/point/30"].append(event(row(40), step=40))
    tags["dse/point/41"] = [event(row(41), step=41)]
    assert reader.points(None, "", "exp/dse").table[:, 1].tolist() == list(range(10, 42))
    assert provider.read == ["dse/point/30", "dse/point/41"]


def test_rebuilt_event_data_replaces_what_was_cached():
    tags = {"dse/point/10": [event(row(10), 10), event(row(11), 11)]}
    reader = Reader(FakeProvider({"exp/dse": tags}))
    reader.points(None, "", "exp/dse")
    tags.clear()
    tags["dse/point/11"] = [event(row(11), 11)]
    assert reader.points(None, "", "exp/dse").table[:, 1].tolist() == [11]


def test_malformed_tensor_spoils_its_tag_only():
    tags = {"dse/point/1": [event(row(1), 1)], "dse/point/2": [event(None, 2)]}
    points = Reader(FakeProvider({"exp/dse": tags})).points(None, "", "exp/dse")
    assert points.table[:, 1].tolist() == [1]
    assert points.skipped == 1


def test_metadata_is_found_through_the_tag_of_its_point():
    tags = {
        "dse/point/1": [event(row(1), 1), event(row(2), 2)],
        "dse/meta/1": [event(text({"seq": 1, "path": "a"})), event(text({"seq": 2, "path": "b"}))],
        "dse/point/3": [event(row(3), 3)],
        "dse/meta/3": [event(text(b"{not json")), event(text([1])), event(text({"seq": [3]}))],
    }
    provider = FakeProvider({"exp/dse": tags})
    reader = Reader(provider)
    assert reader.metadata(None, "", "exp/dse", [2, 99]) == [{"seq": 2, "path": "b"}]
    assert "dse/meta/3" not in provider.read
    assert reader.metadata(None, "", "exp/dse", [3]) == []


def test_probes_of_the_run_join_its_companions():
    def meta(seq, **companions):
        return event(text({"seq": seq, "companions": companions}))

    points = {
        "dse/point/1": [event(row(1), 1), event(row(2), 2)],
        "dse/meta/1": [meta(1, RankMe=30.0), meta(2, RankMe=10.0)],
    }
    probe = {"dse/meta/1": [meta(1, miou_linear=0.25), meta(9, miou_linear=0.9), meta(2, miou_knn="x")]}
    reader = Reader(FakeProvider({"exp/dse": points, "exp/dse/probe": probe}))
    names, table = reader.companions(None, "", "exp/dse")
    assert names == ["RankMe", "miou_linear"]
    np.testing.assert_equal(table, [[1, 30, 0.25], [2, 10, np.nan]])
    (newest,) = reader.metadata(None, "", "exp/dse", [2])  # tells the page which metrics there are
    assert newest["companions"] == {"RankMe": 10.0, "miou_linear": None}
    assert [run["run"] for run in reader.runs(None, "")] == ["exp/dse"]


def test_companions_align_with_points_and_ignore_what_is_no_number():
    def meta(seq, **companions):
        return event(text({"seq": seq, "companions": companions}))

    tags = {
        "dse/point/1": [event(row(1), 1), event(row(2), 2), event(row(3), 3)],
        "dse/meta/1": [meta(3, RankMe=30.0, word="x", flag=True, none=None), meta(1, RankMe=10.0, other=1)],
    }
    names, table = Reader(FakeProvider({"exp/dse": tags})).companions(None, "", "exp/dse")
    assert names == ["RankMe", "other"]
    np.testing.assert_array_equal(table, [[1, 10, 1], [2, np.nan, np.nan], [3, 30, np.nan]])


def test_alerts_come_oldest_first_and_once():
    alert = {"seq": 5, "key": "k5", "kind": "degradation"}
    tags = {"dse/alert/9": [event(text({"seq": 9, "key": "k9"}))], "dse/alert/5": [event(text(alert))] * 2}
    found = Reader(FakeProvider({"exp/dse": tags})).alerts(None, "", "exp/dse")
    assert [item["seq"] for item in found] == [5, 9]


def test_state_that_is_no_json_leaves_the_run_in_the_list():
    tensors = {"a/dse": {"dse/state": [event(text(b"\xff{"))]}, "b/dse": {"dse/point/1": [event(row(1))]}}
    found = Reader(FakeProvider(tensors, runs=["a", "a/dse", "b/dse", "c"])).runs(None, "")
    assert [(run["run"], run["name"], run["state"]) for run in found] == [
        ("a/dse", "a", None),
        ("b/dse", "b", None),
    ]


def test_colour_is_that_of_the_trained_run():
    tensors = {"b/dse": {"dse/state": [event(text({"n_written": 1}))]}}
    (run,) = Reader(FakeProvider(tensors, runs=["a", "b", "b/dse"])).runs(None, "")
    assert run["colour"] == 1
    assert run["state"] == {"n_written": 1}


def test_training_loss_is_offered_before_other_scalars():
    scalars = {
        "exp": {
            "lr": [(100, 0, 0.1)],
            "val/loss": [(100, 0, 2.0)],
            "train/loss": [(100, 0, 1.0)],
            "dse/score": [(100, 0, 0.5)],
            "ibot_loss": [(100, 0, 3.0)],
        }
    }
    provider = FakeProvider(scalars=scalars, runs=["exp", "exp/dse"])
    found = Reader(provider).scalars(None, "", "exp/dse")
    assert [item["tag"] for item in found] == ["train/loss", "ibot_loss", "val/loss", "lr"]


def test_a_run_without_scalars_falls_back_to_its_ancestor():
    provider = FakeProvider(scalars={"a": {"loss": [(1, 0, 1.0)]}}, runs=["a", "a/b", "a/b/dse"])
    assert [item["run"] for item in Reader(provider).scalars(None, "", "a/b/dse")] == ["a"]


def test_maps_of_the_event_data_are_found_by_name_and_checked():
    png = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
    tags = {
        "dse/point/1": [event(row(1), 1)],
        "dse/map/1": [event(text(png), 1)],
        "dse/map/2": [event(text(b"<svg onload=alert(1)>"), 2)],
        "dse/map/3": [event(None, 3)],
        "dse/map/4": [event(np.zeros(3), 4)],
        "dse/map/images": [event(text(b"RIFF....WEBPold")), event(text(b"RIFF....WEBPnew"))],
    }
    reader = Reader(FakeProvider({"exp/dse": tags}))
    assert reader.pictures(None, "", "exp/dse") == {"1", "2", "3", "4", "images"}
    assert reader.picture(None, "", "exp/dse", "1") == (png, "image/png")
    assert reader.picture(None, "", "exp/dse", "images") == (b"RIFF....WEBPnew", "image/webp")
    for name in ("2", "3", "4", "5", "../point/1"):
        assert reader.picture(None, "", "exp/dse", name) is None
