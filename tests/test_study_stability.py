"""Statistics of the further experiments, on numbers whose answers are known; starts taught by labels."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from dse_monitor.trainers import backbones

FOLDER = Path(__file__).parents[1] / "benchmarks"
SIGMA = 0.5  # of DSE over one image


@pytest.fixture
def stability(monkeypatch):
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("study_stability_tables")


@pytest.fixture
def regularized(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("study_regularized")


def _row(run, epoch, separability, error=0.0, **columns):
    numbers = {"m_dim": 0.5, "separability_se": error, "m_dim_se": 0, "covariance": 0}
    row = {"run": run, "epoch": epoch, "separability": separability, **numbers, **columns}
    return {name: str(value) for name, value in row.items()}


def _samples(honest=1.0):
    """DSE of disjoint samples of independent images; the printed error is ``honest`` times the true one."""
    rng = np.random.default_rng(0)
    for count in (64, 256, 1024):
        error = SIGMA / count**0.5
        for epoch in range(12):
            for value in rng.normal(1.0, error, 8):
                yield _row("run", epoch, value, honest * error, images=count)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_scatter_falls_with_images_and_an_honest_error_covers_it(stability):
    table = stability.images_table(list(_samples()), {"run": 1.0}, {"run": 0.1})
    found = [cells(line) for line in table[2:]]
    assert [row[0] for row in found] == ["64", "256", "1,024"]
    for row in found:
        expected = SIGMA / int(row[0].replace(",", "")) ** 0.5
        assert float(row[1]) == pytest.approx(expected, rel=0.15)
        assert float(row[2]) == pytest.approx(expected, rel=0.01)
        assert 90 <= float(row[3].removesuffix(" %")) <= 99
    assert float(found[2][4].removesuffix(" %")) == pytest.approx(100 * float(found[2][1]) / 0.1, abs=1)


def test_an_error_printed_too_small_shows(stability):
    table = stability.images_table(list(_samples(honest=0.4)), {"run": 1.0}, {"run": 0.1})
    assert all(float(cells(line)[3].removesuffix(" %")) < 70 for line in table[2:])


def test_a_seed_that_moves_all_checkpoints_alike_cancels_in_differences(stability):
    rng = np.random.default_rng(1)
    shifts = rng.normal(0, 0.1, 10)
    rows = [
        _row("run", epoch, 1 + shift + rng.normal(0, 0.01), images=256)
        for epoch in (0, 6, 24)
        for shift in shifts
    ]
    for table in (stability.seeds_table(rows, {"run": 1.0}), stability.pairing_table(rows, {"run": 1.0})):
        same, other = (float(cell) for cell in cells(table[2])[-2:])
        assert same < 0.03
        assert other > 0.05


def test_the_choice_that_follows_miou_has_tau_one(stability):
    truth = {"run": {epoch: 0.3 - 0.01 * epoch for epoch in range(6)}}
    rows = [
        _row("run", epoch, sign * truth["run"][epoch], local=3, **{"global": clusters})
        for clusters, sign in ((24, 1), (64, -1))
        for epoch in range(6)
    ]
    table = stability.choices_table(rows, ("local", "global"), truth, "{0[1]}".format)
    assert [cells(line)[:2] for line in table[2:]] == [["24", "+1.00"], ["64", "-1.00"]]


def test_runs_that_end_a_point_below_their_best_are_continued(regularized):
    def miou(*values):
        return [{"miou_linear": str(value)} for value in values]

    assert regularized.degraded(miou(0.2, 0.3, 0.28))
    assert not regularized.degraded(miou(0.2, 0.3, 0.295))
    assert not regularized.degraded([])


def test_gain_of_the_term_is_paired_by_seed(regularized):
    rows = [
        {"run": "a", "start": "4", "weight": weight, "seed": seed, "miou_linear": value, "miou_knn": "0.1"}
        for weight, values in (("0", ("0.10", "0.20", "0.30")), ("0.001", ("0.12", "0.22", "0.32")))
        for seed, value in zip("012", values, strict=True)
    ]
    head, _, row, mean = regularized.table(rows, {"a": (0.4, 0.2)})
    assert cells(head) == ["run", "start at", "mIoU there", "without", "weight 0.001", "gain, 0.001"]
    assert cells(row) == ["a", "4", "40.0 (20.0)", "20.0 ± 8.2 (10.0)", "22.0 ± 8.2 (10.0)", "+2.0 ± 0.0"]
    assert cells(mean)[-1].startswith("+2.0")


@pytest.mark.parametrize("fixed", [False, True])
def test_a_taught_start_differs_from_the_trainers_in_its_networks_alone(tmp_path, monkeypatch, fixed):
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    starts = importlib.import_module("benchmarks.study_starts")
    spec = backbones.describe("vit_mini_patch8", 32, depth=1)
    torch.manual_seed(0)
    network = backbones.build(spec)
    if fixed:
        positions = backbones.sincos_positions(96, 4, cls=True, rows_first=True)
        network.pos_embed.data.copy_(positions.reshape(network.pos_embed.shape))
    weights = network.state_dict()
    model = {
        f"{who}.backbone.{key}": value for who in ("student", "teacher") for key, value in weights.items()
    }
    model["student.head.weight"] = torch.ones(3)
    backbone = {
        name: getattr(spec, name) for name in ("name", "kwargs", "image_size", "num_heads", "norm_eps")
    }
    torch.save({"backbone": backbone, "model": model, "epoch": 0, "step": 1}, tmp_path / "fresh.pth")
    for target in ("a.pth", "b.pth"):
        starts.write(tmp_path / "fresh.pth", tmp_path / target, count=32, size=32, epochs=1)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    again = torch.load(tmp_path / "b.pth", weights_only=True)
    assert (content["epoch"], content["step"]) == (0, 0)
    torch.testing.assert_close(content["model"]["student.head.weight"], torch.ones(3))
    taught = {key.removeprefix("student.backbone."): value for key, value in content["model"].items()}
    assert not torch.equal(taught["blocks.0.attn.qkv.weight"], weights["blocks.0.attn.qkv.weight"])
    assert torch.equal(taught["pos_embed"], weights["pos_embed"]) == fixed
    for key in weights:
        assert torch.equal(content["model"][f"teacher.backbone.{key}"], taught[key])
        assert torch.equal(again["model"][f"teacher.backbone.{key}"], taught[key])  # taught once, kept
