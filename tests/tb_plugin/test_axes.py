"""Where scalars and checkpoints stand on one axis, and segments of resumed runs: the modules of the page."""

import math

import numpy as np
import pytest

from dse_monitor.runs.record import POINT_COLUMNS
from dse_monitor.tb_plugin.line import COLUMNS, line_of
from dse_monitor.tb_plugin.points import Points

CALL = """async (data) => {
  const axes = await import('./static/axes.js');
  const series = await import('./static/series.js');
  const number = (values) => Float64Array.from(values, (value) => value ?? NaN);
  const table = (columns) => columns && {
    rows: Object.values(columns)[0].length,
    columns: Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, number(values)])),
  };
  const [points, loss, epochs] = [data.points, data.loss, data.epochs].map(table);
  const order = {...data.order, columns: table(data.order.columns).columns};
  SCRIPT
}"""

START = 1_790_000_000.0


@pytest.fixture
def call(servers, open_tab):
    tab = open_tab(servers["fast"])

    def go(script, *, points, loss=None, epochs=None):
        count = len(points["mtime"])
        every = {name: [None] * count for name in POINT_COLUMNS}
        every |= {"status": [0] * count, "seq": list(range(1, count + 1)), **points}
        rows = np.array(
            [[math.nan if v is None else v for v in every[name]] for name in POINT_COLUMNS], float
        ).T
        told = line_of(Points(rows, ("0",) * count, 0), lambda seqs: [])
        columns = dict(zip(COLUMNS, told.table.T, strict=True))
        clean = {
            key: table
            and {name: [None if v is None else float(v) for v in values] for name, values in table.items()}
            for key, table in (("points", every), ("loss", loss), ("epochs", epochs))
        }
        finite = {name: [None if math.isnan(v) else v for v in column] for name, column in columns.items()}
        clean["order"] = {"header": told.header(), "rows": len(told.table), "columns": finite}
        return tab.frame.evaluate(CALL.replace("SCRIPT", script), clean)

    return go


ROWS = "const rows = [...points.columns.mtime.keys()];"
CLOCK = ROWS + "const clock = axes.clocks(points, rows, loss, epochs);"


def scalars(steps, walls, values=None):
    return {
        "step": list(steps),
        "wall_time": list(walls),
        "value": list(values if values is not None else steps),
    }


def test_a_logged_epoch_translates_both_ways(call):
    steps = np.arange(0, 1001, 10)
    found = call(
        CLOCK + "return [clock.toEpoch(455), clock.toStep(4.55), clock.estimated, clock.source];",
        points={"epoch": [1, 2, 3], "mtime": [START + k for k in (1, 2, 3)]},
        loss=scalars(steps, START + steps),
        epochs=scalars(steps, START + steps, steps / 100),
    )
    assert found == [pytest.approx(4.55), 450, False, "the logged epoch"]


def test_checkpoints_that_know_both_translate(call):
    found = call(
        CLOCK + "return [clock.toEpoch(300), clock.toStep(2.5), clock.toEpoch(600), clock.estimated];",
        points={"epoch": [1, 2, 4], "step": [100, 200, 400], "mtime": [START + k for k in (1, 2, 4)]},
        loss=scalars([1, 500], [START, START + 5]),
    )
    assert found == [3, 250, 6, False]


def test_steps_in_thousandths_of_an_epoch_are_found_by_time(call):
    """MAE logs x = 1000 * epoch; its checkpoints know their epoch only."""
    epochs = np.arange(0, 50.01, 0.1)
    found = call(
        CLOCK + "return [clock.toEpoch(20000), clock.toStep(10), clock.estimated];",
        points={"epoch": [10, 20, 30, 40], "mtime": [START + 600 * e for e in (10, 20, 30, 40)]},
        loss=scalars(1000 * epochs, START + 600 * epochs),
    )
    assert found[0] == pytest.approx(20, rel=0.01)
    assert found[1] == pytest.approx(10_000, rel=0.02)
    assert found[2] is True


def test_steps_that_count_images_are_not_mixed_with_those_of_the_files(call):
    """The loss is logged over images seen, 256 per step; the files count steps."""
    steps = np.arange(1, 2001)
    found = call(
        CLOCK + "return [clock.toEpoch(256 * 1000), clock.estimated];",
        points={
            "epoch": [2, 4, 6, 8],
            "step": [400, 800, 1200, 1600],
            "mtime": [START + s + 0.5 for s in (400, 800, 1200, 1600)],
        },
        loss=scalars(256 * steps, START + steps),
    )
    assert found == [pytest.approx(5, rel=0.01), True]


def test_copied_files_give_no_line(call):
    """All times alike: nothing can be concluded, and nothing is."""
    found = call(
        CLOCK + "return [clock.toEpoch(500), clock.estimated];",
        points={"epoch": [1, 2, 3, 4], "mtime": [START + 900] * 4},
        loss=scalars(range(1, 1001), START + np.arange(1000)),
    )
    assert found == [None, False] or np.isnan(found[0])


def test_a_line_is_accepted_within_one_percent_only(call):
    script = "return [axes.fitLine(%s) !== null];"
    good = [[k, 10 * k + (0.3 if k % 2 else -0.3)] for k in range(10)]
    bad = [[k, 10 * k + (3 if k % 2 else -3)] for k in range(10)]
    falling = [[k, -k] for k in range(10)]
    points = {"mtime": [0]}
    answers = [call(script % pairs, points=points)[0] for pairs in (good, bad, falling, good[:2])]
    assert answers == [True, False, False, False]


def test_missing_steps_are_estimated_and_marked(call):
    found = call(
        CLOCK
        + "const found = axes.positions(points, rows, 'step', clock, 0);"
        + "return [[...found.x], [...found.estimated]];",
        points={"epoch": [1, 2, 3], "step": [100, None, 300], "mtime": [START + 1, START + 2, START + 3]},
    )
    assert found == [[100, 200, 300], [0, 1, 0]]


def test_several_checkpoints_of_one_epoch_stand_apart_on_every_axis(call):
    """Ten steps an epoch; the files of an epoch say the same epoch."""
    script = ROWS + (
        "const line = series.lineOf(points, series.orderOf(points, order));"
        "const all = (axis) => [...axes.positions(points, rows, axis, null, 0, line).x];"
        "return ['epoch', 'step', 'order'].map(all);"
    )
    points = {
        "epoch": [0, 1, 1, 2],
        "step": [5, 10, 15, 20],
        "file": [1, 2, 3, 4],
        "mtime": [START + k for k in range(4)],
    } | {k: [v] * 4 for k, v in PARTS.items()}
    assert call(script, points=points) == [[0.5, 1, 1.5, 2], [5, 10, 15, 20], [1, 2, 3, 4]]


def test_hours_count_from_the_first_scalar_or_checkpoint(call):
    script = ROWS + (
        "const start = axes.startOf(points, rows, loss);"
        "return [...axes.positions(points, rows, 'relative', null, start).x];"
    )
    points = {"mtime": [START + 3600, START + 7200]}
    assert call(script, points=points, loss=scalars([1], [START])) == [1, 2]
    assert call(script, points=points) == [0, 1]


PARTS = {"m_inter": 1, "m_intra_image": 1, "m_intra_batch": 1, "m_dim": 0.5}


@pytest.mark.parametrize(
    ("steps", "mtimes", "expected"),
    [
        ([10, 20, 30], [1, 2, 3], []),
        ([10, 20, 30, 20, 30, 40], [1, 2, 3, 4, 5, 6], [20]),  # went back to 20
        ([10, 20, 30, 15], [1, 2, 3, 4], [15]),
        ([30, 10, 20], [3, 1, 2], []),  # evaluated in another order than written
        ([10, 20, 10, 20], [1, 2, 1, 2], []),  # measured twice
        ([10, 20, 30], [5, 5, 5], []),  # copied
    ],
)
def test_a_resumed_run_is_recognised_by_its_files_times(call, steps, mtimes, expected):
    count = len(steps)
    points = {"step": steps, "mtime": [START + m for m in mtimes]} | {
        k: [v] * count for k, v in PARTS.items()
    }
    script = (
        "const line = series.lineOf(points, series.orderOf(points, order));"
        "return series.resumes(points, line).map((i) => points.columns.step[line.rows[i]]);"
    )
    assert call(script, points=points) == expected
