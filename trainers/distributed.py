"""Collectives that do nothing on one process, and batch norm over processes on any backend."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather as _all_gather_with_gradient
from torch.distributed.nn.functional import all_reduce as _all_reduce_with_gradient
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum over processes, without gradient; the input is left alone."""
    tensor = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Mean over processes, without gradient; the input is left alone."""
    return sum_over_processes(tensor) / world_size()


def max_over_processes(tensor: Tensor) -> Tensor:
    """Largest value over processes, without gradient; the input is left alone."""
    tensor = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def means_over_processes(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each scalar's mean over processes, in one collective; every process must know the same names."""
    if world_size() == 1 or not values:
        return dict(values)
    names = sorted(values)
    means = mean_over_processes(torch.stack([values[name].float() for name in names]))
    return dict(zip(names, means, strict=True))


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that FSDP spreads, sharing its memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def of_first_process(tensor: Tensor) -> Tensor:
    """The first process's tensor on every process; the input is left alone."""
    tensor = tensor.detach().clone()
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def gather(tensor: Tensor) -> Tensor:
    """[B, ...] of every process joined to [world * B, ...] in order of rank, without gradient."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    tensor = tensor.contiguous()  # parts made like a transposed tensor would be read in another order
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As :func:`gather`, but differentiable: the backward sums all processes' gradients of the own part.

    With DDP's averaging of parameter gradients, a loss on gathered rows gets exactly the global batch's
    gradient.
    """
    if world_size() == 1:
        return tensor
    parts = _all_gather_with_gradient(tensor.contiguous())
    for part in parts:
        if part.requires_grad:
            # gloo sends the memory of a gradient as if it were contiguous, whatever its strides
            part.register_hook(torch.Tensor.contiguous)
    return torch.cat(parts)


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all processes for gloo; ``torch.nn.SyncBatchNorm`` runs on accelerators only.

    Same parameters, buffers and numbers as ``nn.BatchNorm1d/2d`` on the joined batch; equal batches per
    process.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncedBatchNorm expects at least [B, C], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, ...] over everything but C and over processes."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        given = input.dtype
        if given in (torch.float16, torch.bfloat16):  # in which statistics would be coarse
            input = input.float()
        axes = [0, *range(2, input.dim())]
        mean = _all_reduce_with_gradient(input.mean(axes)) / world_size()
        centred = input - mean.view(1, -1, *[1] * (input.dim() - 2))
        variance = _all_reduce_with_gradient(centred.square().mean(axes)) / world_size()
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            count = input.numel() / input.size(1) * world_size()
            with torch.no_grad():
                assert self.momentum is not None
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_(variance.detach() * count / (count - 1), self.momentum)
        normal = centred * torch.rsqrt(variance + self.eps).view(1, -1, *[1] * (input.dim() - 2))
        if self.weight is not None:
            shape = (1, -1, *[1] * (input.dim() - 2))
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(given)


def synchronise_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm of a module share its statistics over processes; names and state stay the same."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            synced = SyncedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            synced.__dict__.update(
                {k: child.__dict__[k] for k in ("_parameters", "_buffers", "training", "momentum")}
            )
            setattr(module, name, synced)
        else:
            synchronise_batchnorm(child, device)
    return module
