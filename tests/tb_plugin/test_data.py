"""Reading, pairing and packing, without a server."""

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from dse_monitor.record import POINT_COLUMNS, SCHEMA
from tb_plugin.data import (
    Folders,
    Reader,
    decode_rows,
    join_shards,
    loss_score,
    pack,
    scalar_sources,
    trained_run,
)

WIDTH = len(POINT_COLUMNS)


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


def test_rows_of_another_kind_are_counted_and_left_out():
    good = row(7, epoch=1.0)
    bad = [
        good[:-1],
        good.astype(np.float32),
        good.reshape(1, -1),
        text(b"x"),
        None,
        row(np.nan),
        row(1.5),
        row(-3),
        row(2.0**53),
        row(np.inf),
        row(8, schema=SCHEMA + 1),
        row(8, schema=np.nan),
    ]
    rows, skipped = decode_rows([good, *bad])
    assert rows.tolist()[0][:4] == good.tolist()[:4]
    assert (len(rows), skipped) == (1, len(bad))


def test_columns_of_a_newer_minor_version_are_left_out():
    rows, skipped = decode_rows([np.append(row(3), [1.0, 2.0])])
    assert (rows.shape, skipped) == ((1, WIDTH), 0)


def test_rows_come_in_order_of_their_numbers_each_once():
    shard = SimpleNamespace
    points = join_shards(
        {
            "5": shard(rows=np.stack([row(5), row(9)]), skipped=0),
            "2": shard(rows=np.stack([row(2, epoch=1.0), row(5, epoch=4.0)]), skipped=3),
        }
    )
    assert points.table[:, 1].tolist() == [2, 5, 9]
    assert points.tags == ("2", "2", "5")  # of two rows with one number, the one read last
    assert points.skipped == 3


def test_no_shards_make_an_empty_table():
    points = join_shards({})
    assert points.table.shape == (0, WIDTH)
    assert points.version == "0-0-0"


def test_packed_columns_start_at_multiples_of_eight_bytes():
    table = np.array([[1.0, np.nan], [2.0, -np.inf], [3.0, 0.1]])
    for name in ("a", "ab", "abc", "abcdefgh"):
        body = pack({"columns": [name, "y"]}, table)
        (length,) = struct.unpack("<I", body[:4])
        assert (4 + length) % 8 == 0
        assert json.loads(body[4 : 4 + length])["rows"] == 3
        np.testing.assert_array_equal(np.frombuffer(body[4 + length :]).reshape(2, 3), table.T)


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


@pytest.mark.parametrize(
    ("run", "expected"),
    [("dse", "."), ("exp/dse", "exp"), ("exp", "exp"), ("a/dse/b/dse", "a/dse/b"), ("xdse", "xdse")],
)
def test_trained_run_is_the_folder_above(run, expected):
    assert trained_run(run) == expected


def test_scalars_are_looked_for_near_the_run_first():
    every = [".", "a", "a/b", "a/b/dse", "a/b/tb", "a/b/tb/dse", "a/c", "z"]
    assert scalar_sources("a/b/dse", every) == [["a/b"], ["a/b/tb"], ["a"], ["."], ["a/b/dse"]]
    assert scalar_sources("dse", [".", "dse", "tb"]) == [["."], ["tb"], ["dse"]]


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


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("train/loss", "train_loss"),
        ("Loss", "my/loss_total"),
        ("my/loss_total", "loss_weights/x"),
        ("dino_loss", "val/loss"),
        ("val_loss", "accuracy"),
        ("loss/train", "loss/test"),
    ],
)
def test_likelier_tags_score_higher(better, worse):
    assert loss_score(better) > loss_score(worse)


@pytest.mark.parametrize(
    "tag", ["val_loss", "eval/loss", "loss/valid", "test.loss", "lr", "accuracy", "evaluation"]
)
def test_held_out_losses_are_not_taken_for_the_training_loss(tag):
    assert loss_score(tag) < 50


def flags(logdir="", logdir_spec=""):
    return SimpleNamespace(logdir=logdir, logdir_spec=logdir_spec)


PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "logs" / "exp" / "dse" / "media"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    return folder


def test_image_of_a_run_is_read_from_its_media_folder(tmp_path, media):
    folders = Folders.from_flags(flags(str(tmp_path / "logs")))
    assert folders.image("exp/dse", "media/1.png") == (PNG, "image/png")


def test_logdir_spec_is_understood(tmp_path, media):
    logs = tmp_path / "logs"
    named = Folders.from_flags(flags(logdir_spec=f"mine:{logs},gs://bucket/x,{tmp_path / 'nothing'}"))
    assert named.image("mine/exp/dse", "media/1.png") is not None
    assert named.image("exp/dse", "media/1.png") is None
    direct = Folders.from_flags(flags(logdir_spec=f"run:{logs / 'exp' / 'dse'}"))
    assert direct.image("run", "media/1.png") is not None
    assert direct.image("runner", "media/1.png") is None


@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("exp/dse", "media/../media/1.png"),
        ("exp/dse", "../../../secret.png"),
        ("exp/dse", "media/..png"),
        ("exp/dse", "media/.1.png"),
        ("exp/dse", "media/1.png\n"),
        ("exp/dse", "1.png"),
        ("exp/dse", "media/1.txt"),
        ("exp/dse", ""),
        ("../logs/exp/dse", "media/1.png"),
        ("/etc", "media/1.png"),
        ("exp/other", "media/1.png"),
    ],
)
def test_paths_that_leave_the_media_folder_are_refused(tmp_path, media, run, file):
    assert Folders.from_flags(flags(str(tmp_path / "logs"))).image(run, file) is None


def test_links_out_of_the_media_folder_are_refused(tmp_path, media):
    (media / "2.png").symlink_to(tmp_path / "secret.png")
    (media / "3.png").symlink_to(media / "1.png")
    folders = Folders.from_flags(flags(str(tmp_path / "logs")))
    assert folders.image("exp/dse", "media/2.png") is None
    assert folders.image("exp/dse", "media/3.png") is not None


def test_a_file_that_is_no_image_is_refused_whatever_its_name(tmp_path, media):
    (media / "4.png").write_bytes(b"<svg onload=alert(1)>")
    (media / "5.png").write_bytes(PNG + b"\0" * (5 << 20))
    folders = Folders.from_flags(flags(str(tmp_path / "logs")))
    assert folders.image("exp/dse", "media/4.png") is None
    assert folders.image("exp/dse", "media/5.png") is None
