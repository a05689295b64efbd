"""Where a run computes: device, processes, precision, loader processes, and reading a device in passing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from dse_monitor.trainers.engine import allocator
from dse_monitor.trainers.settings import Settings, TrainingError


def precision(settings: Settings, device: torch.device) -> torch.dtype:
    """Arithmetic of the forward pass; ``auto`` is bfloat16 where a GPU has it."""
    if settings.precision == "auto":
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if capable else torch.float32
    return getattr(torch, settings.precision)


def workers(settings: Settings, device: torch.device) -> int:
    """As asked, or: one on a CPU that has a core to spare, else one per usable core, at most 12."""
    if settings.workers >= 0:
        return settings.workers
    spare = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1
    return max(0, min(spare, 1)) if device.type == "cpu" else max(1, min(12, spare))


def set_up_torch(settings: Settings, device: torch.device) -> None:
    """Process-wide switches: memory on CPUs, deterministic kernels, or the fast ones of GPUs."""
    if device.type == "cpu":
        allocator.use_huge_pages()
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # only a warning: the backward of bicubic interpolation has no deterministic form on GPUs
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    elif device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


@contextlib.contextmanager
def processes(settings: Settings) -> Iterator[torch.device]:
    """The device of this process; joins the process group if torchrun started it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device != "auto":
        device = torch.device(settings.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise TrainingError(f"--device {settings.device}: no CUDA in this machine or this torch")
        device = torch.device("cuda", device.index or int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


class Later:
    """A scalar that is sent for now and read later: reading what was queued last would stall a GPU.

    It travels to page-locked memory behind the work that is queued now, so that waiting for it does not wait
    for what is queued afterwards.
    """

    def __init__(self, scalar: Tensor) -> None:
        self._scalar, self._arrived = scalar, None
        if scalar.is_cuda:
            page = torch.empty((), dtype=scalar.dtype, pin_memory=True)
            self._scalar, self._arrived = page.copy_(scalar, non_blocking=True), torch.cuda.Event()
            self._arrived.record()

    def value(self) -> bool | int | float:
        """The scalar, once it is here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._scalar.item()
