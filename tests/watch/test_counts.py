"""Bare numbers in names, under watch: one unit in one run."""

import os
import struct

import pytest

from dse_monitor.runs import ledger
from dse_monitor.watch.console import Notice
from dse_monitor.watch.run.counts import largest_step

pytestmark = pytest.mark.fast


def _places(run):
    return [(e.source.path, e.source.epoch, e.source.step) for e in ledger.read(run / "dse").evaluations]


def _write(checkpoint, run, name, number, **facts):
    path = checkpoint(run / name, value=number, **facts)
    os.utime(path, (1e9 + number, 1e9 + number))


def test_large_numbers_are_steps(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    for number in (5000, 10000, 15000):
        _write(checkpoint, run, f"ckpt_{number}.pt", number)
    watch = watching(run, once=True)
    assert watch.run() == 0
    assert _places(run) == [(f"ckpt_{n}.pt", None, n) for n in (5000, 10000, 15000)]
    (said,) = [n.text for n in watch.console.of(Notice) if "bare numbers" in n.text]
    assert said == "bare numbers in names are taken as steps: they reach 15,000; --unit decides otherwise"


def test_small_numbers_are_epochs_unless_the_user_says_otherwise(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    for number in (1, 2):
        _write(checkpoint, run, f"model_{number}.pt", number)
    watching(run, once=True).run()
    assert _places(run) == [("model_1.pt", 1.0, None), ("model_2.pt", 2.0, None)]
    _write(checkpoint, run, "model_3.pt", 3)
    watching(run, once=True, unit="step").run()
    assert _places(run) == [("model_1.pt", None, 1), ("model_2.pt", None, 2), ("model_3.pt", None, 3)]
    watching(run, once=True).run()
    assert _places(run)[0] == ("model_1.pt", None, 1)


def test_a_run_that_turns_out_to_count_steps_counts_them_from_its_start(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    _write(checkpoint, run, "model_500.pt", 500)
    watch = watching(run)
    watch.step(10)
    assert _places(run) == [("model_500.pt", 500.0, None)]
    _write(checkpoint, run, "model_1000.pt", 1000)
    watch.step(20)
    assert _places(run) == [("model_500.pt", None, 500), ("model_1000.pt", None, 1000)]
    _write(checkpoint, run, "model_1500.pt", 1500)
    watch.step(20)
    assert [row.source.step for row in watch.monitor.runs[run].history] == [500, 1000, 1500]
    assert watch.jobs == ["model_500.pt", "model_1000.pt", "model_1500.pt"]


def test_numbers_that_count_what_was_saved_are_neither(tmp_path, watching, checkpoint):
    run = tmp_path / "exp1"
    for number in (0, 1, 10):
        _write(checkpoint, run, f"checkpoints/checkpoint_{number}/model.safetensors", number)
    watching(run, once=True).run()
    assert _places(run) == [(f"checkpoints/checkpoint_{n}/model.safetensors", None, None) for n in (0, 1, 10)]


def _event(step):
    varint = bytearray()
    while step >= 0x80:
        varint.append(step & 0x7F | 0x80)
        step >>= 7
    body = b"\x09" + bytes(8) + b"\x10" + bytes([*varint, step]) + b"\x2a\x03abc"
    return struct.pack("<Q", len(body)) + bytes(4) + body + bytes(4)


def test_event_files_tell_how_far_the_steps_are(tmp_path):
    (tmp_path / "tb").mkdir()
    (tmp_path / "tb" / "events.out.tfevents.1.host").write_bytes(b"".join(map(_event, (1, 70_000, 300))))
    (tmp_path / "events.out.tfevents.2.host").write_bytes(_event(5)[:-9])
    (tmp_path / "events.out.tfevents.3.host").write_bytes(os.urandom(1000))
    assert largest_step(tmp_path) >= 70_000
    assert largest_step(tmp_path / "nothing") == 0
