"""The line that the backend tells is that of the records, and the page draws what it tells."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from run_places import measured, runs

from dse_monitor.publish.encoding import metadata, point
from dse_monitor.publish.events import EventWriter
from dse_monitor.publish.state import run_state
from dse_monitor.runs.record import FIRST_COLUMNS, POINT_COLUMNS
from dse_monitor.runs.series import Series
from dse_monitor.tb_plugin.line import COLUMNS, line_of
from dse_monitor.tb_plugin.points import Points, decode_rows

WIDTH = len(POINT_COLUMNS)


def points_of(run, columns=WIDTH):
    rows, _ = decode_rows([np.array(point(e)[:columns]) for e in run])
    return Points(rows, ("0",) * len(rows), 0)


@settings(deadline=None, max_examples=60)
@given(runs())
def test_the_line_of_points_is_that_of_the_records(run):
    by_seq = {e.seq: metadata(e) for e in run}
    line = line_of(points_of(run), lambda seqs: [by_seq[seq] for seq in seqs])
    series = Series.from_evaluations(run)
    told = dict(zip(COLUMNS, line.table.T, strict=True))
    assert told["seq"].tolist() == [e.seq for e in series.evaluations]
    assert (line.axis, told["x"].tolist()) == (series.axis, series.x.tolist())
    assert told["untrained"].astype(bool).tolist() == series.untrained.tolist()
    assert {seq: why for seq, why, _ in line.aside} == dict(series.aside)
    assert list(line.notes) == [note.text for note in series.notes]


def test_points_that_an_earlier_version_wrote_have_the_same_line_without_merging():
    run = [measured(k, 0, 2 * k) for k in range(1, 11)]
    old, new = (line_of(points_of(run, n), lambda seqs: []) for n in (FIRST_COLUMNS, WIDTH))
    assert old.axis == new.axis == "step"
    assert np.array_equal(old.table, new.table, equal_nan=True)


@pytest.fixture(scope="module")
def odd_run(serve, tmp_path_factory):
    """One pass over the data with all that may be odd: the untrained network, a rewritten file, a twin."""
    folder = tmp_path_factory.mktemp("odd") / "onepass"
    run = [measured(1, 0, 0, path="init.pth", dse=3.0)]
    run += [measured(k, (k - 2) // 4, 100 * (k - 1), dse=1 - 0.1 * abs(k - 6)) for k in range(2, 12)]
    run.append(measured(20, 2, 900, path="c10.pth", content="other", dse=0.5))
    run.append(measured(21, path="latest.pth", content=run[4].source.content, dse=0.9))
    run = [dataclasses.replace(e, wall_time=1e9 + e.seq) for e in run]
    with EventWriter(folder / "dse") as writer:
        for evaluation in run:
            writer.add_evaluation(evaluation)
        writer.set_state(run_state(run, [], run="onepass"))
    server = serve(folder.parent)
    server.wait_until_up()
    server.wait_for_rows("onepass/dse", len(run))
    return server, run


def test_the_route_tells_order_axis_and_what_does_not_count(odd_run):
    server, run = odd_run
    header, columns = server.packed("line", run="onepass/dse")
    series = Series.from_evaluations(run)
    assert columns["seq"].tolist() == [e.seq for e in series.evaluations]
    assert (header["axis"], columns["x"].tolist()) == ("step", [100.0 * k for k in range(11)])
    assert columns["untrained"].tolist() == [1.0] + [0.0] * 10
    assert header["aside"] == [[10, "replaced", 20], [21, "merged", 5]]
    assert header["notes"] == [note.text for note in series.notes]
    assert "latest.pth holds the same weights as c5.pth: counted once" in header["notes"]
    assert server.packed("line", run="nothing")[0]["rows"] == 0


def test_several_checkpoints_of_an_epoch_are_drawn_apart_on_every_axis(odd_run, open_tab):
    server, run = odd_run
    tab = open_tab(server)
    line = tab.run("onepass/dse")["line"]
    series = Series.from_evaluations(run)
    assert (line["axis"], line["length"], line["best"]) == ("step", 11, series.best)
    assert "★ Take step 500 (epoch 1)" in tab.text(".answer")
    said = tab.text('.banner[data-banner="order"]')
    for note in series.notes:
        assert note.text in said
    assert tab.text('[data-axis][aria-pressed="true"]') == "Step"
    for axis in ("order", "wall", "epoch"):
        tab.frame.locator(f'[data-axis="{axis}"]').click()
        xs = tab.do("return [...app.runs.get('onepass/dse').x];")
        assert len(set(xs)) == 11, axis
    assert tab.do("return app.runs.get('onepass/dse').estimated[1];") == 1  # nobody says how long an epoch is
    tab.do("app.set({axis: null, chosen: 1});")
    assert tab.frame.locator(".badge", has_text="untrained").count() == 1
    tab.do("app.set({chosen: 10});")
    assert tab.frame.get_by_text("replaced by a newer version").count() == 1
    tab.do("app.set({chosen: 21});")
    assert tab.frame.get_by_text("same weights as step 400 (epoch 0)").count() == 1
