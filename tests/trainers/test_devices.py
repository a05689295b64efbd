"""Where a run computes, and what it chooses for itself."""

from __future__ import annotations

import os

import pytest
import torch

from dse_monitor.trainers.engine import devices
from dse_monitor.trainers.settings import Settings, TrainingError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("cores", "processes", "device", "workers"),
    [
        (1, 1, CPU, 0),
        (2, 3, CPU, 0),
        (2, 1, CPU, 1),
        (16, 1, CPU, 1),
        (8, 1, GPU, 7),
        (64, 1, GPU, 12),
        (64, 8, GPU, 7),
        (1, 1, GPU, 1),
    ],
)
def test_loader_processes_follow_the_cores_of_each_process(
    cores, processes, device, workers, monkeypatch, tmp_path
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert devices.workers(Settings(data="scenes", out=tmp_path), device) == workers
    assert devices.workers(Settings(data="scenes", out=tmp_path, workers=3), device) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_one_line(tmp_path, small, run):
    with pytest.raises(TrainingError, match="--device cuda:1: no CUDA in this machine"):
        run("dino", small("dino"), tmp_path, device="cuda:1")


@pytest.mark.parametrize("value", [torch.tensor(True), torch.tensor(143), torch.tensor(0.5)])
def test_scalar_sent_for_keeps_its_value(value):
    assert devices.Later(value.clone()).value() == value.item()


def test_fast_kernels_are_chosen_only_where_nothing_must_be_deterministic(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: asked.append("deterministic"))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    devices.set_up_torch(Settings(data="scenes", out=tmp_path), GPU)
    assert (asked, torch.backends.cudnn.benchmark) == (["high"], True)
    devices.set_up_torch(Settings(data="scenes", out=tmp_path, deterministic=True), GPU)
    assert (asked, torch.backends.cudnn.benchmark) == (["high", "deterministic"], False)
