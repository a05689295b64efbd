"""A method made ready for the loop: memory, speed and process options applied, wrapped for its processes."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dse_monitor.trainers import backbones, distributed
from dse_monitor.trainers.engine import compiling, sharding
from dse_monitor.trainers.method import Method
from dse_monitor.trainers.settings import Settings


class Prepared(NamedTuple):
    """A method as the loop calls it.

    Attributes:
        module: the method itself, or what wraps it.
        channels_last: whether its images should be in that memory format.
        sharded: whether its parameters are spread over the processes.
    """

    module: nn.Module
    channels_last: bool
    sharded: bool


def prepare(
    method: Method, settings: Settings, precision: torch.dtype, device: torch.device, processes: int
) -> Prepared:
    """Apply the memory, speed and process options to a method, in place."""
    channels_last = settings.channels_last and method.backbone_spec.family == "conv"
    if channels_last:
        method.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if processes > 1 and method.sync_batchnorm:
        distributed.synchronise_batchnorm(method, device)
    if settings.checkpointing:
        backbones.checkpoint_activations(method)
    if settings.compile:
        compiling.compile_blocks(method)
    if sharding.wanted(method, settings, precision, device):
        return Prepared(sharding.Sharded(method, device), channels_last, sharded=True)
    if processes == 1:
        return Prepared(method, channels_last, sharded=False)
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # Its successor would give every process the first one's queues and centres at the start.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        wrapped = DistributedDataParallel(method, device_ids=devices, broadcast_buffers=False)
    return Prepared(wrapped, channels_last, sharded=False)
