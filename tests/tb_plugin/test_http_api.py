"""The routes over HTTP, each for both of TensorBoard's data loaders."""

import concurrent.futures
import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins import base_plugin
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dse_monitor import tb_plugin
from dse_monitor.publish.encoding import point
from dse_monitor.publish.events import EventWriter
from dse_monitor.publish.rebuild import rebuild
from dse_monitor.publish.state import run_state
from dse_monitor.runs.record import POINT_COLUMNS
from dse_monitor.tb_plugin.plugin import DSEPlugin

# A page of HTML, script and format characters in the place of every text.
HOSTILE = '<img src=x onerror="alert(1)">\'${1}{{2}}\u202e%00&lt;\u2028</script><script>alert(2)</script>'


def test_all_of_ten_thousand_checkpoints_arrive(server):
    columns = server.wait_for_rows("big/dse", 10_000)
    assert len(columns["seq"]) == 10_000
    assert np.all(np.diff(columns["seq"]) > 0)
    np.testing.assert_allclose(np.sort(columns["epoch"]), 0.1 * np.arange(1, 10_001))


def test_numbers_arrive_in_double_precision(server, logdir, synthetic, tmp_path):
    run = synthetic.write_run(tmp_path / "falling", failures=[17, 18])
    columns = server.wait_for_rows("falling/dse", 40)
    expected = np.array([point(record) for record in run.evaluations]).T
    for name, wanted in zip(POINT_COLUMNS, expected, strict=True):
        np.testing.assert_array_equal(columns[name], wanted, err_msg=name)


def test_since_sends_only_what_is_new(server):
    columns = server.wait_for_rows("falling/dse", 40)
    edge = int(columns["seq"][29])
    header, fresh = server.points("falling/dse", since=edge)
    assert fresh["seq"].tolist() == columns["seq"][30:].tolist()
    assert (header["total"], header["since"], header["skipped"]) == (40, edge, 0)


def test_unchanged_replies_are_304(server):
    server.wait_for_rows("falling/dse", 40)
    for route in ("runs", "points", "alerts", "scalars", "companions", "static/app.js", "index.js"):
        query = {} if "." in route or route == "runs" else {"run": "falling/dse"}
        first = server.get(route, **query)
        again = server.get(route, headers={"If-None-Match": first.headers["ETag"]}, **query)
        assert (first.status, again.status, again.body) == (200, 304, b""), route
        assert again.headers["Content-Type"]  # TensorBoard warns of every reply without one
    other = server.get("points", run="falling/dse", since=5, headers={"If-None-Match": first.headers["ETag"]})
    assert other.status == 200


def test_runs_tell_state_colour_and_folder(server, logdir):
    server.wait_for(lambda: len(server.get("runs").json()["runs"]) >= 6)
    reply = server.get("runs").json()
    assert reply["logdir"] == str(logdir)
    falling = next(run for run in reply["runs"] if run["name"] == "falling")
    assert falling["run"] == "falling/dse"
    assert falling["state"]["n_written"] == 40
    assert falling["state"]["alert"]["status"] == "firing"
    starts = [run["start"] for run in reply["runs"]]
    assert starts == sorted(starts)


def test_metadata_says_why_a_checkpoint_failed(server):
    columns = server.wait_for_rows("falling/dse", 40)
    seq = int(columns["seq"][17])
    (meta,) = server.get("meta", run="falling/dse", seq=seq).json()
    assert (meta["seq"], meta["status"], meta["error"]) == (seq, "failed", "IncompleteCheckpoint")
    assert (meta["map"], meta["originals"]) == (None, True)


def test_companions_are_columns_beside_the_points(server, synthetic):
    seqs = server.wait_for_rows("falling/dse", 40)["seq"]
    header, columns = server.packed("companions", run="falling/dse")
    assert header["columns"] == ["seq", "RankMe", "alpha-ReQ"]
    np.testing.assert_array_equal(columns["seq"], seqs)
    assert np.isnan(columns["RankMe"]).nonzero()[0].tolist() == [17, 18]


def test_alerts_are_listed_with_all_their_fields(server):
    server.wait_for_rows("falling/dse", 40)
    found = server.get("alerts", run="falling/dse").json()
    assert [alert["status"] for alert in found] == ["pending", "firing"]
    assert found[1]["cause"] == "separability"
    assert found[1]["shares"] == {"separability": 0.78, "m_dim": 0.22}


def test_training_loss_is_found_beside_the_run(server):
    server.wait_for(lambda: server.get("scalars", run="falling/dse").json())
    found = server.get("scalars", run="falling/dse").json()
    assert (found[0]["run"], found[0]["tag"]) == ("falling", "train/loss")
    assert {item["tag"] for item in found} == {"train/loss", "epoch", "lr"}  # ours are not among them
    _, columns = server.packed("scalar", run="falling", tag="train/loss")
    assert len(columns["value"]) == 400
    assert np.all(np.diff(columns["step"]) > 0)


def test_a_run_without_loss_has_no_scalars(server):
    server.wait_for_rows("lossless/dse", 12)
    assert server.get("scalars", run="lossless/dse").json() == []


def test_feature_maps_and_originals_are_served(server):
    columns = server.wait_for_rows("falling/dse", 40)
    image = server.get("media", run="falling/dse", seq=int(columns["seq"][0]))
    assert (image.status, image.headers["Content-Type"]) == (200, "image/png")
    assert image.body.startswith(b"\x89PNG")
    assert image.headers["X-Content-Type-Options"] == "nosniff"
    assert server.get("media", run="falling/dse", seq="images").status == 200
    assert server.get("media", run="falling/dse", seq=int(columns["seq"][17])).status == 404


def test_out_of_order_and_repeated_evaluations_all_arrive(server):
    columns = server.wait_for_rows("shuffled/dse", 23)
    assert len(columns["seq"]) == 23
    epochs = columns["epoch"].tolist()
    assert [epochs.count(epoch) for epoch in (25.0, 40.0, 5.0)] == [3, 2, 1]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_only_reading_is_allowed(server, method):
    for route in ("runs", "points", "meta", "companions", "alerts", "scalars", "scalar", "media", "index.js"):
        reply = server.get(route, method=method, run="falling/dse")
        assert (reply.status, reply.headers.get("Allow")) == (405, "GET, HEAD"), route


def test_head_sends_headers_only(server):
    reply = server.get("runs", method="HEAD")
    assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "static/../plugin.py",
        "static/%2e%2e/plugin.py",
        "static/..%2fplugin.py",
        "static//etc/passwd",
        "static/vendor/../../plugin.py",
        "static/%00",
        "static/",
        "static/nothing.js",
    ],
)
def test_paths_outside_the_static_files_are_not_found(server, path):
    assert server.get(path).status == 404


@pytest.mark.parametrize(
    ("route", "query"),
    [
        ("points", {}),
        ("points", {"run": ""}),
        ("points", {"run": "x" * 5000}),
        ("points", {"run": "falling/dse", "since": "-1"}),
        ("points", {"run": "falling/dse", "since": "1e3"}),
        ("points", {"run": "falling/dse", "since": "9" * 40}),
        ("points", {"run": "falling/dse", "since": "٣"}),
        ("meta", {"run": "falling/dse"}),
        ("meta", {"run": "falling/dse", "seq": "a"}),
        ("meta", {"run": "falling/dse", "seq": ",1"}),
        ("meta", {"run": "falling/dse", "seq": ",".join(["1"] * 201)}),
        ("media", {"run": "falling/dse", "seq": "../x"}),
        ("scalar", {"run": "falling"}),
    ],
)
def test_bad_parameters_are_400(server, route, query):
    reply = server.get(route, **query)
    assert reply.status == 400
    assert reply.headers["Content-Type"].startswith("text/plain")


def test_unknown_names_are_empty_or_not_found(server):
    assert server.points("no such run")[0]["rows"] == 0
    assert server.get("alerts", run="../..").json() == []
    assert server.get("scalars", run=HOSTILE).json() == []
    assert server.get("media", run="falling/dse", seq=1).status == 404
    assert server.get("media", run="../falling/dse", seq="images").status == 404
    assert server.get("meta", run="falling/dse", seq=12345).json() == []


def test_many_requests_at_once_get_equal_answers(server):
    server.wait_for_rows("falling/dse", 40)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: server.get("points", run="falling/dse").body, range(24)))
    assert len(set(found)) == 1


# ---- written to while TensorBoard runs ---------------------------------------------------------------------


def records(synthetic, count, name, start=0):
    noise = np.zeros(3)
    clock = synthetic.START + 1e6
    return [
        synthetic.evaluation(
            k,
            epoch=float(k + 1),
            progress=(k + 1) / 100,
            degraded=False,
            noise=noise,
            seq=int(clock * 1e6) + k,
        )
        for k in range(start, start + count)
    ]


def scalar_event(step, value, wall_time):
    summary = Summary(value=[Summary.Value(tag="loss", simple_value=value)])
    return Event(step=step, wall_time=wall_time, summary=summary)


@pytest.mark.parametrize("loader", ["fast", "python"])
def test_nothing_is_lost_or_doubled_while_trainer_and_watcher_write_and_restart(
    request, servers, logdir, synthetic, loader
):
    """Two writers at once, a watcher that is killed, a trainer that goes back with purge_step, a rebuild."""
    server, name = servers[loader], f"live/{loader}"
    run = logdir / name
    all_records = records(synthetic, 45, name)
    trainer = EventFileWriter(str(run))
    watcher = EventWriter(run / "dse")
    request.addfinalizer(lambda: (trainer.close(), watcher.close()))

    def train(first, last):
        for step in range(first, last):
            trainer.add_event(scalar_event(step, 1.0 / step, synthetic.START + step))
        trainer.flush()

    def watch(some):
        for record in some:
            watcher.add_evaluation(record)
            watcher.flush()

    def loss():
        return server.packed("scalar", run=name, tag="loss")[1]["step"].tolist()

    train(1, 51)
    watch(all_records[:7])
    assert len(server.wait_for_rows(f"{name}/dse", 7)["seq"]) == 7
    watch([*all_records[12:15], *all_records[7:12]])  # out of order
    train(51, 101)
    assert len(server.wait_for_rows(f"{name}/dse", 15)["seq"]) == 15
    assert server.wait_for(lambda: loss() == list(range(1, 101)))

    watcher._drop()  # killed: nothing is flushed, nothing closed in order
    watcher = EventWriter(run / "dse")
    assert watcher.catch_up(all_records[:18], []) == 3
    watcher.flush()
    trainer.close()
    trainer = EventFileWriter(str(run))
    trainer.add_event(
        Event(step=60, wall_time=synthetic.START + 500, session_log=SessionLog(status=SessionLog.START))
    )
    train(60, 121)
    watch(all_records[18:40])
    assert len(server.wait_for_rows(f"{name}/dse", 40)["seq"]) == 40
    assert server.wait_for(lambda: loss()[-1:] == [120])

    again = [dataclasses.replace(record, seq=record.seq + 1000) for record in all_records[:5]]
    watch([*all_records[40:], *again])  # five measured a second time
    watcher.set_state(run_state([*all_records, *again], [], run=name))
    watcher.close()
    trainer.close()
    found = server.wait_for_rows(f"{name}/dse", 50)
    assert sorted(found["seq"]) == sorted(record.seq for record in [*all_records, *again])

    rebuild(run / "dse", [*all_records, *again], [], run_state([*all_records, *again], [], run=name))
    extra = records(synthetic, 1, name, start=60)
    with EventWriter(run / "dse") as watcher:
        watcher.add_evaluation(dataclasses.replace(extra[0], seq=again[-1].seq + 1))
    assert len(server.wait_for_rows(f"{name}/dse", 51)["seq"]) == 51  # rebuilt files double nothing


@pytest.mark.parametrize("loader", ["fast", "python"])
def test_foreign_and_hostile_records_are_counted_and_the_rest_is_served(servers, logdir, synthetic, loader):
    from dse_monitor.publish import encoding

    server, name = servers[loader], f"hostile/{loader}"
    good = records(synthetic, 3, name)
    source = dataclasses.replace(good[1].source, path=HOSTILE, arch=HOSTILE, aliases=(HOSTILE,))
    good[1] = dataclasses.replace(good[1], source=source, map_file="../../../../etc/passwd")
    with EventWriter(logdir / name / "dse") as writer:
        for record in good:
            writer.add_evaluation(record)
        writer.set_state({**run_state(good, [], run=HOSTILE), "n_written": 4})
    broken = EventFileWriter(str(logdir / name / "dse"))
    values = []
    for tag, tensor in (
        ("dse/point/9000", encoding.doubles([1.0, 2.0])),
        ("dse/point/9001", encoding.json_string({"no": "numbers"})),
        ("dse/point/9002", TensorProto(dtype=encoding.DT_FLOAT, float_val=[1.0])),
        ("dse/point/nonsense", encoding.doubles([np.nan] * len(POINT_COLUMNS))),
        ("dse/meta/9000", encoding.doubles([1.0])),
        ("dse/alert/1", TensorProto(dtype=encoding.DT_STRING, string_val=[b"{not json"])),
    ):
        values.append(Summary.Value(tag=tag, tensor=tensor, metadata=encoding.describe("dse", "")))
    broken.add_event(Event(step=1, wall_time=1.0, summary=Summary(value=values)))
    broken.close()
    server.wait_for(lambda: server.points(f"{name}/dse")[0]["skipped"] == 4)
    header, columns = server.points(f"{name}/dse")
    assert (header["rows"], header["skipped"]) == (3, 4)
    assert columns["seq"].tolist() == [record.seq for record in good]
    assert server.get("alerts", run=f"{name}/dse").json() == []
    (meta,) = server.get("meta", run=f"{name}/dse", seq=good[1].seq).json()
    assert meta["path"] == HOSTILE
    assert meta["map"] is None
    assert server.get("media", run=f"{name}/dse", seq=good[1].seq).status == 404


# ---- other ways to start TensorBoard -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(serve, logdir, synthetic, tmp_path_factory):
    """Started with fewer samples than there are points, below a prefix; one of them with --logdir_spec."""
    folder = tmp_path_factory.mktemp("sampled")
    synthetic.write_run(folder / "exp", checkpoints=40, maps=True)
    limit = ("--samples_per_plugin", "dse=5")
    started = {
        "fast": serve(folder, *limit, prefix="/a/prefix"),
        "python": serve(folder, *limit, prefix="/a/prefix", source=("--logdir_spec", f"mine:{folder}")),
    }
    for server in started.values():
        server.wait_until_up()
    return {"fast": (started["fast"], "exp/dse"), "python": (started["python"], "mine/exp/dse")}


@pytest.mark.parametrize("loader", ["fast", "python"])
def test_a_sample_is_recognised_by_the_count_written(sampled, loader):
    server, run = sampled[loader]
    server.wait_for_rows(run, 20)
    (told,) = server.get("runs").json()["runs"]
    assert told["state"]["n_written"] == 40
    assert server.points(run)[0]["rows"] == 20  # five of each ten


@pytest.mark.parametrize("loader", ["fast", "python"])
def test_feature_maps_are_found_below_a_prefix_and_under_a_given_name(sampled, loader):
    server, run = sampled[loader]
    columns = server.wait_for_rows(run, 20)
    assert server.get("media", run=run, seq=int(columns["seq"][-1])).status == 200


@pytest.mark.parametrize("fast", ["true", "false"])
def test_maps_arrive_where_only_the_event_files_were_copied(serve, synthetic, tmp_path, fast):
    """A long run: its first maps all come, of later ones the nearest; the original images too."""
    run = synthetic.write_run(tmp_path / "made" / "exp", checkpoints=136, maps=True, loss=False)
    (tmp_path / "copy" / "exp" / "dse").mkdir(parents=True)
    for file in (run.folder / "dse").glob("events.*"):
        shutil.copy(file, tmp_path / "copy" / "exp" / "dse")
    server = serve(tmp_path / "copy", "--load_fast", fast)
    server.wait_until_up()
    seqs = [int(seq) for seq in server.wait_for_rows("exp/dse", 136)["seq"]]
    asked = ",".join(str(seqs[k]) for k in (5, 128, 133))
    found = server.get("meta", run="exp/dse", seq=asked).json()
    assert [seqs.index(item["map"]) for item in found] == [5, 128, 132]
    assert all(item["originals"] for item in found)
    for k in (5, 128, 132):
        image = server.get("media", run="exp/dse", seq=seqs[k])
        assert (image.status, image.headers["Content-Type"]) == (200, "image/png")
        assert image.body == (run.folder / "dse" / "media" / f"map-{k:05d}.png").read_bytes()
    assert server.get("media", run="exp/dse", seq=seqs[133]).status == 404
    images = server.get("media", run="exp/dse", seq="images")
    assert (images.status, images.headers["Content-Type"]) == (200, "image/webp")


# ---- documentation and plugin ------------------------------------------------------------------------------


def test_http_api_describes_exactly_the_routes():
    text = (Path(tb_plugin.__file__).parent / "http_api.md").read_text()
    described = set(re.findall(r"^## `(/.*)`$", text, re.MULTILINE))
    context = base_plugin.TBContext(flags=None, logdir="")
    assert described == set(DSEPlugin(context).get_plugin_apps())
    for column in POINT_COLUMNS:
        assert f"`{column}`" in text


def test_plugin_is_active_without_looking():
    plugin = DSEPlugin(base_plugin.TBContext(flags=None, logdir=""))  # no data provider to ask
    assert plugin.is_active() is False
    assert set(plugin.data_plugin_names()) == {"dse", "dse_state"}
