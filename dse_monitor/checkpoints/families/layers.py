"""Names and shapes of the tensors in common layers, as a module's state dict has them; no torch.

Shapes: C channels or width out, I width in, k kernel side.
"""

from __future__ import annotations

from dse_monitor.checkpoints.families.statedicts import Shape

Shapes = dict[str, Shape]

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm, which are not parameters


def linear(name: str, out: int, into: int, *, bias: bool = True) -> Shapes:
    """A weight [C, I] and a bias [C]."""
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def convolution(name: str, out: int, into: int, kernel: int, *, bias: bool = False) -> Shapes:
    """A weight [C, I, k, k] and a bias [C]; I counts the channels of one group."""
    return {f"{name}.weight": (out, into, kernel, kernel), **({f"{name}.bias": (out,)} if bias else {})}


def norm(name: str, width: int) -> Shapes:
    """Weight and bias of a layer norm, [C]."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> Shapes:
    """Weight, bias and running statistics, [C], and the number of batches they come from."""
    statistics = {f"{name}.{part}": (width,) for part in BUFFERS[:2]}
    return {**norm(name, width), **statistics, f"{name}.{BUFFERS[2]}": ()}
