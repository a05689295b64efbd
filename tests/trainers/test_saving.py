"""Checkpoint files: atomic, rotated, and refused with a reason."""

from __future__ import annotations

import resource

import pytest
import torch

from dse_monitor.trainers.engine import saving
from dse_monitor.trainers.settings import TrainingError


@pytest.fixture
def small_disk():
    """Files of this process may not grow beyond 64 kB, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, small_disk):
    path = tmp_path / "checkpoint_0001.pth"
    saving.write({"format": "dse-train", "schema": 1, "step": 1}, path)
    with pytest.raises(TrainingError, match=r"checkpoint_0001\.pth could not be written \(.*large") as raised:
        saving.write({"x": torch.rand(100_000)}, path)
    assert "\n" not in str(raised.value)
    assert saving.read(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_rotation_keeps_the_newest(tmp_path):
    for epoch in (1, 2, 9, 10, 10000):
        (tmp_path / f"checkpoint_{epoch:04d}.pth").touch()
    (tmp_path / "checkpoint_best.pth").touch()
    saving.rotate(tmp_path, 0)
    assert len(saving.numbered(tmp_path)) == 5
    saving.rotate(tmp_path, 2)
    assert [p.name for p in saving.numbered(tmp_path)] == ["checkpoint_0010.pth", "checkpoint_10000.pth"]
    assert (tmp_path / "checkpoint_best.pth").exists()


def test_newest_passes_over_a_damaged_file(tmp_path):
    for epoch in (1, 2):
        content = {"format": "dse-train", "schema": 1, "step": epoch}
        saving.write(content, tmp_path / f"checkpoint_{epoch:04d}.pth")
    whole = (tmp_path / "checkpoint_0002.pth").read_bytes()
    (tmp_path / "checkpoint_0002.pth").write_bytes(whole[: len(whole) // 2])
    path, content = saving.newest(tmp_path)
    assert (path.name, content["step"]) == ("checkpoint_0001.pth", 1)


def test_newest_prefers_what_got_further(tmp_path):
    saving.write({"format": "dse-train", "schema": 1, "step": 30}, tmp_path / "checkpoint_0001.pth")
    saving.write({"format": "dse-train", "schema": 1, "step": 45}, tmp_path / saving.LAST)
    assert saving.newest(tmp_path)[0].name == saving.LAST


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict": {}}, "format None"),
        ([1], "'list'"),
        ({"format": "dse-train", "schema": 2}, "schema 2"),
    ],
)
def test_foreign_files_are_refused_with_what_was_found(tmp_path, content, reason):
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with pytest.raises(TrainingError, match=reason):
        saving.read(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"nowhere\.pth does not exist"):
        saving.read(tmp_path / "nowhere.pth")
