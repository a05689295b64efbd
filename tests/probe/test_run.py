"""Probes with labels beside a run's DSE: once per checkpoint, kept, joined to the evaluations."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dse_monitor.cli.printing import FAILED
from dse_monitor.cli.probe import ProbeOptions, probe
from dse_monitor.errors import RunError
from dse_monitor.evaluation.config import EvaluationConfig, Placement
from dse_monitor.evaluation.evaluator import Evaluator
from dse_monitor.probe import run as probe_run
from dse_monitor.probe.options import ProbeConfig
from dse_monitor.runs import export, ledger
from dse_monitor.runs.locking import RunLock
from dse_monitor.runs.probed import read
from dse_monitor.runs.record import PROBE_FOLDER
from dse_monitor.scenes import write_folder

EPOCHS = (1, 2, 3)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Twelve scenes of 32 px with masks, two splits."""
    images = write_folder(tmp_path_factory.mktemp("labelled"), 12, size=32, seed=2, masks=True)
    return ProbeConfig(images=images, masks=images.parent / "masks", num_images=12, splits=2, device="cpu")


@pytest.fixture
def run(tmp_path, write_checkpoint):
    """A run of three checkpoints with their DSE in its ledger."""
    held_out = write_folder(tmp_path / "held-out", 8, size=32, seed=1)
    place = Placement(cache=str(tmp_path / "cache"), device="cpu")
    evaluate = Evaluator(EvaluationConfig(images=held_out, num_images=8), place)
    folder = tmp_path / "run"
    folder.mkdir()
    book = ledger.Ledger.open(folder / "dse")
    book.append("watch", {"probe": {"image_size": 32, "layout": None}})
    for epoch in EPOCHS:
        path = write_checkpoint(folder / f"checkpoint_{epoch:04d}.pth", seed=epoch)
        found = evaluate(path)
        source = dataclasses.replace(found.source, path=path.name, epoch=float(epoch), step=10 * epoch)
        book.append_evaluation(dataclasses.replace(found, seq=epoch, source=source), {})
    book.close()
    return folder


def silent(name):
    return contextlib.nullcontext(lambda stage, done, total: None)


def probe_all(run, labelled, refused=None):
    """Probe a run; the evaluations probed by this call."""

    def refuse(evaluation, error):
        assert refused is not None, error
        refused.append((evaluation.seq, str(error)))

    return [e.seq for e, _ in probe_run.probe_run(run / "dse", labelled, silent, refuse)]


def test_every_checkpoint_is_probed_once(run, labelled):
    assert probe_all(run, labelled) == [1, 2, 3]
    assert probe_all(run, labelled) == []
    found = read(run / "dse")
    assert [item.seq for item in found] == [1, 2, 3]
    assert all(0 <= item.numbers["miou_linear"] <= 1 for item in found)


def test_an_interrupted_call_goes_on(run, labelled):
    calls = probe_run.probe_run(run / "dse", labelled, silent, lambda evaluation, error: None)
    assert next(calls)[0].seq == pytest.approx(1)
    calls.close()
    with (run / "dse" / PROBE_FOLDER / ledger.NAME).open("ab") as file:
        file.write(b'{"v":1,"kind":"probed","t":17')  # killed while writing
    assert probe_all(run, labelled) == [2, 3]
    assert [item.seq for item in read(run / "dse")] == [1, 2, 3]


def test_other_labelled_images_begin_anew_and_count_from_then_on(run, labelled):
    probe_all(run, labelled)
    before = read(run / "dse")
    assert probe_all(run, dataclasses.replace(labelled, splits=1)) == [1, 2, 3]
    after = read(run / "dse")
    assert {item.truth for item in before}.isdisjoint(item.truth for item in after)
    assert all(math.isnan(item.numbers["miou_linear_std"]) for item in after)
    assert probe_all(run, labelled) == []  # known from before, though no longer the newest


def test_files_that_are_gone_or_overwritten_are_refused_by_name(run, labelled, write_checkpoint):
    (run / "checkpoint_0001.pth").unlink()
    write_checkpoint(run / "checkpoint_0002.pth", seed=7)
    refused = []
    assert probe_all(run, labelled, refused) == [3]
    assert [seq for seq, _ in refused] == [1, 2]
    assert "checkpoint_0001.pth" in refused[0][1]
    assert "not hold the weights" in refused[1][1]


def test_a_copied_run_with_new_times_is_probed(run, labelled):
    for path in run.glob("*.pth"):
        os.utime(path, (1, 1))
    assert probe_all(run, labelled) == [1, 2, 3]


def test_two_at_once_are_refused(run, labelled):
    lock = RunLock(run / "dse" / PROBE_FOLDER)
    lock.take()
    try:
        with pytest.raises(RunError):
            probe_all(run, labelled)
    finally:
        lock.release()


def test_tables_and_event_data_stand_beside_dse(run, labelled, tmp_path):
    plain = export.rows(run / "dse")
    assert "miou_linear" not in plain[0]
    probe_all(run, labelled)
    export.write_csv(run / "dse", tmp_path / "table.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    found = {item.seq: item.numbers for item in read(run / "dse")}
    for row in rows:
        assert float(row["miou_knn"]) == found[int(row["seq"])]["miou_knn"]
    folder = run / "dse" / PROBE_FOLDER
    assert len(list(folder.glob("events.out.tfevents.*"))) == pytest.approx(1)
    tensors = EventAccumulator(str(folder)).Reload().Tensors("dse/probe/miou_linear")
    assert [tensor.step for tensor in tensors] == [10 * seq for seq in EPOCHS]
    values = [tensor.tensor_proto.float_val[0] for tensor in tensors]
    assert values == pytest.approx([found[seq]["miou_linear"] for seq in EPOCHS])


def test_command_says_what_the_labels_think_of_dse(run, labelled, capsys):
    assert probe(ProbeOptions(checkpoints=(run,), config=labelled)) == 0
    said = capsys.readouterr().out
    assert said.count("linear mIoU") == 4  # one line each, and the head of the summary
    assert "3 of 3 checkpoints probed" in said
    assert "Kendall tau with DSE" in said
    assert probe(ProbeOptions(checkpoints=(run / "dse",), config=labelled, json=True)) == 0
    assert capsys.readouterr().out == ""  # nothing new
    with pytest.raises(RunError, match="probe it alone"):
        probe(ProbeOptions(checkpoints=(run, run / "checkpoint_0001.pth"), config=labelled))
    with pytest.raises(RunError, match="nothing to probe"):
        probe(ProbeOptions(checkpoints=(), config=labelled))


def test_json_lines_hold_dse_and_probes(run, labelled, capsys):
    (run / "checkpoint_0001.pth").unlink()
    assert probe(ProbeOptions(checkpoints=(run,), config=labelled, json=True)) == FAILED
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["seq"] for line in lines] == [2, 3]
    assert all(math.isfinite(line["dse"]) and 0 <= line["linear"]["miou"] <= 1 for line in lines)
    assert "checkpoint_0001.pth: not probed: " in said.err


def test_tau_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for count in (2, 3, 10, 50):
        a, b = rng.integers(0, 6, count), rng.normal(size=count)
        expected = stats.kendalltau(a, b).statistic
        assert probe_run.kendall_tau(a, b) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(probe_run.kendall_tau([1, 1, 1], [1, 2, 3]))
    assert probe_run.kendall_tau([1, 2, np.nan, 3], [1, 2, 0, 3]) == pytest.approx(1)
