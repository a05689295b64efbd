"""The study's bookkeeping and statistics, on series whose answers are known."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from dse_monitor.trainers.methods import METHODS

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("study")


@pytest.fixture
def tables(study):
    pytest.importorskip("scipy")
    return importlib.import_module("study_tables")


def _rows(study, m_inter, miou, name="falling"):
    """Checkpoints every two epochs whose DSE goes with ``m_inter`` alone."""
    constant = {"m_intra_image": 0.5, "m_intra_batch": 0.5, "m_dim_se": 0.001, "separability_se": 0.004}
    for k, (inter, score) in enumerate(zip(m_inter, miou, strict=True), 1):
        row = dict.fromkeys(study.COLUMNS, "nan") | {"run": name, "epoch": f"{2 * k}", "loss": f"{9 - k}"}
        row |= {key: str(value) for key, value in constant.items()} | {"separability_dim_cov": "0"}
        yield row | {
            "m_inter": str(inter),
            "m_dim": str(0.5 + 0.1 * inter),
            "miou_linear": str(score),
            "miou_knn": str(1 - score),
        }


def test_every_method_has_a_row_and_every_difference_a_reason(study):
    assert {run.method for run in study.RUNS} == set(METHODS)
    assert len({run.title for run in study.RUNS}) == len(study.RUNS)
    assert all(run.why for run in study.RUNS if run.flags or not run.vit)


def test_lines_are_read_as_they_were_written(study, tmp_path):
    rows = list(_rows(study, [1.0, 1.1], [0.2, 0.3]))
    assert study.read(tmp_path / "none.csv") == []
    study.write(tmp_path / "run.csv", rows)
    assert study.read(tmp_path / "run.csv") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["run.csv"]


def test_loss_is_the_mean_since_the_checkpoint_before(study, tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for epoch, loss in enumerate([4.0, 2.0, 1.0, 3.0, 9.0], 1):
            writer.add_scalar("train/loss", loss, 8 * epoch)
    assert study.epoch_losses(tmp_path, 2) == {2.0: 3.0, 4.0: 2.0}


def test_a_number_that_goes_with_miou_has_tau_one(study, tables, tmp_path):
    rise = np.linspace(1, 1.4, 12)
    miou = np.concatenate([rise, rise[::-1] - 0.05]) - 0.9
    study.write(tmp_path / "falling.csv", list(_rows(study, miou + 0.9, miou)))
    found = tables.load(tmp_path / "falling.csv")
    assert tables.tau(found.numbers["m_inter"], found.linear) == pytest.approx(1)
    assert tables.tau_interval(found.numbers["m_inter"], found.linear) == (
        pytest.approx(1),
        pytest.approx(1),
    )
    assert tables.tau(found.numbers["m_inter"], found.knn) == pytest.approx(-1)
    assert math.isnan(tables.tau(found.numbers["RankMe"], found.linear))
    assert tables.first_alarm(found.series) > 24  # the fall begins there
    (row,) = (line for line in tables.choice_table([found]) if line.startswith("| falling"))
    assert row == "| falling | 5.0 | 10.0 | 50.0 | 50.0 | 50.0 | 5.0 | 50.0 | 45.0 |"
    (row,) = (line for line in tables.alarm_table([found]) if line.startswith("| falling"))
    assert row.startswith("| falling | 48 | 24 | 45.0 | 24 | ")


def test_interval_holds_the_truth_about_as_often_as_it_says(tables):
    """Independent series have tau zero."""
    rng = np.random.default_rng(3)
    held = 0
    for seed in range(12):
        low, high = tables.tau_interval(rng.normal(size=24), rng.normal(size=24), seed)
        held += low <= 0 <= high
    assert 9 <= held <= 12


def test_one_checkpoint_is_refused(study, tables, tmp_path):
    study.write(tmp_path / "short.csv", list(_rows(study, [1.0], [0.2])))
    with pytest.raises(ValueError, match=r"short\.csv: 1 checkpoints, at least 2"):
        tables.load(tmp_path / "short.csv")


def test_only_runs_with_every_checkpoint_enter_the_tables(study, tables, tmp_path):
    first, second, *rest = (run.title for run in study.RUNS)
    study.write(tmp_path / f"{second}.csv", list(_rows(study, [1.0, 1.1, 1.2], [0.2, 0.3, 0.3])))
    study.write(tmp_path / f"{first}.csv", list(_rows(study, [1.0, 1.1], [0.2, 0.3])))
    files, others = tables.finished(tmp_path, planned=3)
    assert files == [tmp_path / f"{second}.csv"]
    missing = [f"{name} (0 of 3 checkpoints)" for name in rest]
    assert others == [f"{first} (2 of 3 checkpoints)", *missing]
