"""What was scored and shares a place is shown, counted and published, or a line says why not."""

import csv
import io
import json
import math
import os

import pytest

from dse_monitor.runs import export, ledger
from dse_monitor.watch.console import Notice, Row

pytestmark = pytest.mark.fast


def notices(watch):
    return [notice.text for notice in watch.console.of(Notice)]


def best_of(run):
    return json.loads((run / "dse" / "best.json").read_text())


@pytest.fixture
def one_pass(tmp_path, watching, checkpoint):
    """Ten checkpoints within one epoch, the best at step 6."""
    run = tmp_path / "exp1"
    for k in range(1, 11):
        path = run / f"epoch=0-step={2 * k}.ckpt"
        checkpoint(path, epoch=0, step=2 * k, value=k, m_inter=1 - 0.05 * abs(k - 3))
    watch = watching(run, once=True)
    assert watch.run() == 0
    return run, watch


def test_ten_checkpoints_of_one_epoch_are_ten_points_and_the_best_is_among_ten(one_pass):
    run, watch = one_pass
    rows = watch.console.of(Row)
    assert [row.x for row in rows] == [0, *range(4, 21, 2)]  # one alone is at its epoch; two tell the axis
    assert [row.axis for row in rows] == ["epoch"] + ["step"] * 9
    assert rows[-1].place == "step 20 (epoch 0)"
    told = best_of(run)
    assert (told["axis"], told["measured"], told["best"]["step"]) == ("step", 10, 6)
    assert told["notes"] == ["10 checkpoints share their epoch with another: ordered by step"]
    said = [text for text in notices(watch) if "share their epoch" in text]
    assert len(said) == 1  # once, not at every checkpoint


def test_nothing_that_compares_is_shown_before_lambda_follows_from_the_run(one_pass):
    rows = one_pass[1].console.of(Row)
    assert [row.settled for row in rows] == [False, False] + [True] * 8
    assert [row.best for row in rows[:4]] == [False, False, True, False]


def test_the_table_tells_positions_where_epochs_do_not(one_pass, capsys):
    export.write_csv(one_pass[0] / "dse", None)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["axis"], row["at"], row["aside"]) for row in rows] == [
        ("step", f"{2.0 * k}", "") for k in range(1, 11)
    ]


def test_a_checkpoint_rewritten_at_its_place_is_said_and_stays_in_the_table(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    for k in range(1, 5):
        checkpoint(run / f"checkpoint{k:04d}.pth", epoch=k, value=k, m_inter=0.1 * k)
    assert watching(run, once=True).run() == 0
    checkpoint(run / "checkpoint0003.pth", epoch=3, value=33, m_inter=0.9)
    watch = watching(run, once=True)
    assert watch.run() == 0
    text = "checkpoint0003.pth was rewritten with other weights at epoch 3: the newer version counts"
    assert text in notices(watch)
    assert best_of(run)["measured"] == 4
    rows = export.rows(run / "dse")
    assert [row["aside"] for row in rows] == [None, None, "replaced", None, None]
    assert [row["at"] for row in rows] == [1, 2, None, 4, 3]


def test_another_name_of_the_same_weights_is_said(tmp_path, watching, checkpoint):
    """A file that knows no epoch, measured before the one that does."""
    run = tmp_path / "exp1"
    checkpoint(run / "weights.pth", value=2, m_inter=0.2)
    assert watching(run, once=True).run() == 0
    for k in (1, 2, 3):
        checkpoint(run / f"checkpoint{k:04d}.pth", epoch=k, value=k, m_inter=0.1 * k)
    watch = watching(run, once=True)
    assert watch.run() == 0
    assert len(ledger.read(run / "dse").evaluations) == 4
    assert "weights.pth holds the same weights as checkpoint0002.pth: counted once" in notices(watch)
    assert (best_of(run)["axis"], best_of(run)["measured"]) == ("epoch", 3)


def test_the_untrained_network_is_shown_as_such_and_never_the_best(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    checkpoint(run / "init.pth", epoch=0, step=0, value=0, m_inter=9.0)
    for k in range(1, 5):
        checkpoint(run / f"checkpoint{k:04d}.pth", epoch=k, step=10 * k, value=k, m_inter=0.1 * k)
    watch = watching(run, once=True)
    assert watch.run() == 0
    rows = {row.path: row for row in watch.console.of(Row)}
    assert (rows["init.pth"].mark, rows["init.pth"].best, rows["init.pth"].delta) == (
        "untrained",
        False,
        None,
    )
    assert rows["checkpoint0004.pth"].best
    assert math.isclose(rows["checkpoint0004.pth"].delta, 0.1)  # above the best of the trained ones
    assert (best_of(run)["measured"], best_of(run)["best"]["path"]) == (4, "checkpoint0004.pth")
    assert any("init.pth is the untrained network (step 0)" in text for text in notices(watch))
    aside = {row["path"]: row["aside"] for row in export.rows(run / "dse")}
    assert aside["init.pth"] == "untrained"


def test_timms_recovery_files_take_part(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    names = ["recovery-0-5", "checkpoint-0", "recovery-1-5", "checkpoint-1", "recovery-2-5", "checkpoint-2"]
    for k, name in enumerate(names):
        path = checkpoint(run / f"{name}.pth.tar", epoch=(k + 1) // 2, value=k, m_inter=0.1 * k)
        os.utime(path, (1.7e9 + 60 * k, 1.7e9 + 60 * k))
    watch = watching(run, once=True)
    assert watch.run() == 0
    told = best_of(run)
    assert (told["axis"], told["measured"], told["best"]["path"]) == ("order", 6, "checkpoint-2.pth.tar")
    at = {row["path"]: row["at"] for row in export.rows(run / "dse")}
    assert [at[f"{name}.pth.tar"] for name in names] == [1, 2, 3, 4, 5, 6]


def test_a_best_that_only_lambda_made_so_is_said(tmp_path, watching, checkpoint):
    """The row of an earlier checkpoint cannot be changed any more."""
    run = tmp_path / "exp1"
    for k, score in enumerate([0.5, 0.4, 0.3], 1):
        checkpoint(run / f"checkpoint{k:04d}.pth", epoch=k, value=k, m_inter=score)
    watch = watching(run, once=True)
    assert watch.run() == 0
    assert any(text.startswith("best is now epoch 1 (checkpoint0001.pth)") for text in notices(watch))
