"""Momentum teachers. By hand: timm's ModelEmaV3 averages buffers too, the methods average parameters only."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from dse_monitor.trainers.distributed import local

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """A copy that starts from the same weights, takes no gradient and stays in the mode it is put in."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float, *, common_only: bool = False) -> None:
    """Teacher <- momentum * teacher + (1 - momentum) * student, for every parameter; buffers are left alone.

    Call it in ``after_step`` (DINO family, MEC, I-JEPA) or, where the authors update inside their forward and
    therefore with the weights of the step before, in ``before_step`` (BYOL, MoCo v3, ReSA, DenseCL).

    Args:
        teacher: the module to move.
        student: must hold every parameter of the teacher under the same name; further ones (a predictor, a
            mask token) are ignored.
        momentum: in [0, 1].
        common_only: leave a teacher's parameter that the student does not list where it is (iBOT).

    Raises:
        KeyError: a teacher's parameter has no counterpart.
    """
    online, own = dict(student.named_parameters()), dict(teacher.named_parameters())
    if common_only:
        own = {name: p for name, p in own.items() if name in online}
    names = list(own)
    missing = [name for name in names if name not in online]
    if missing:
        raise KeyError(
            f"the student has no parameter {missing[0]!r} ({len(missing)} of {len(names)} missing)"
        )
    averaged = [local(p.data) for p in own.values()]  # spread as the student's, if they are
    # one kernel for all tensors; torch has no public name for these
    torch._foreach_mul_(averaged, momentum)  # pyright: ignore[reportPrivateImportUsage]
    current = [local(online[name].data) for name in names]
    torch._foreach_add_(averaged, current, alpha=1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
