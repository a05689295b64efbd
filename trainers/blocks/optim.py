"""Optimisers, parameter groups, clipping and schedules.

``torch.optim`` gives AdamW and SGD. The three layer-wise ones are here because no package has these exact
rules: timm's ``Lars`` and the Barlow Twins code agree on the trust ratio but not on its zero-norm case, its
epsilon or on exempting a group from the ratio; BYOL's code keeps the learning rate inside the momentum
buffer; and SwAV's is apex's LARC, which takes the raw gradient without decay where a norm is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dse_monitor.trainers.distributed import local, sum_over_processes
from dse_monitor.trainers.method import ParameterGroup, Plan, Recipe

# Optimisers -------------------------------------------------------------------------------------------------


class LARS(torch.optim.Optimizer):
    """LARS as in facebookresearch/barlowtwins and vicreg: the learning rate is outside the momentum buffer.

    g' = (g + wd w) * eta ||w|| / ||g + wd w|| (ratio 1 where a norm is zero); v = m v + g'; w -= lr v.
    Groups with ``adapt=False`` skip the ratio.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float, weight_decay: float = 0.0, eta: float = 1e-3
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": True}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group, params, grads, buffers in _with_gradient(self):
            updates = torch._foreach_add(grads, params, alpha=group["weight_decay"])  # pyright: ignore
            if group["adapt"]:
                weight_norms, update_norms = _norms(params), _norms(updates)
                ratios = group["eta"] * weight_norms / update_norms
                _scale(updates, torch.where((weight_norms > 0) & (update_norms > 0), ratios, 1.0))
            torch._foreach_mul_(buffers, group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(buffers, updates)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(params, buffers, alpha=-group["lr"])  # pyright: ignore
        return loss


class InnerLARS(torch.optim.Optimizer):
    """LARS as in yaox12/BYOL-PyTorch: the learning rate is inside the momentum buffer.

    local = eta ||w|| / (||g|| + wd ||w||); d = (g + wd w) * local * lr; v = m v + d; w -= v.
    Groups with ``adapt=False`` use local = 1. An all-zero weight has local 0 and never moves.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float, weight_decay: float = 0.0, eta: float = 1e-3
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": True}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group, params, grads, buffers in _with_gradient(self):
            decay = group["weight_decay"]
            updates = torch._foreach_add(grads, params, alpha=decay)  # pyright: ignore
            if group["adapt"]:
                weight_norms = _norms(params)
                totals = _norms(grads) + decay * weight_norms
                # 0 / 0 where weight and gradient are both zero: nothing to move then
                _scale(updates, torch.where(totals > 0, group["eta"] * weight_norms / totals, 0.0))
            torch._foreach_mul_(buffers, group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(buffers, updates, alpha=group["lr"])  # pyright: ignore
            torch._foreach_sub_(params, buffers)  # pyright: ignore[reportPrivateImportUsage]
        return loss


class LARC(torch.optim.Optimizer):
    """SGD under apex's LARC without clipping, as in facebookresearch/swav: every parameter is adapted.

    Where both norms are positive g' = (g + wd w) eta ||w|| / (||g|| + wd ||w|| + eps), else g' = g (no
    decay); v = g' at first, then m v + g'; w -= lr v.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group, params, grads, buffers in _with_gradient(self):
            decay, weight_norms, grad_norms = group["weight_decay"], _norms(params), _norms(grads)
            ratios = group["eta"] * weight_norms / (grad_norms + decay * weight_norms + group["eps"])
            adapted = (weight_norms > 0) & (grad_norms > 0)
            updates = torch._foreach_add(grads, params, alpha=decay)  # pyright: ignore
            # not adapted: the gradient, which is the sum for a zero weight and zero for a zero gradient
            _scale(updates, torch.where(adapted, ratios, (grad_norms > 0).to(ratios.dtype)))
            torch._foreach_mul_(buffers, group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(buffers, updates)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(params, buffers, alpha=-group["lr"])  # pyright: ignore
        return loss


def _with_gradient(
    optimizer: torch.optim.Optimizer,
) -> Iterable[tuple[dict[str, Any], list[Tensor], list[Tensor], list[Tensor]]]:
    """Each group with its parameters that have a gradient, these gradients, and their momentum buffers."""
    for group in optimizer.param_groups:
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if "momentum_buffer" not in optimizer.state[p]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        if params:
            buffers = [optimizer.state[p]["momentum_buffer"] for p in params]
            yield group, params, [p.grad for p in params], buffers


def _norms(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The norm of each, [len(tensors)]."""
    return torch.stack(torch._foreach_norm(tensors))  # pyright: ignore


def _scale(tensors: list[Tensor] | tuple[Tensor, ...], factors: Tensor) -> None:
    """Multiply each in place by its entry of ``factors``."""
    torch._foreach_mul_(tensors, list(factors.unbind()))  # pyright: ignore


def build(recipe: Recipe, groups: Sequence[ParameterGroup], *, fused: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimiser over a method's groups; the engine sets lr and decay before each step.

    Args:
        recipe: names the optimiser and its constants.
        groups: from ``Method.parameter_groups``.
        fused: use torch's fused kernels for AdamW and SGD.

    Raises:
        ValueError: unknown optimiser, or a parameter in two groups.
    """
    seen: set[int] = set()
    for group in groups:
        for name, parameter in group.parameters:
            if id(parameter) in seen:
                raise ValueError(f"parameter {name} is in two groups (second: {group.name})")
            seen.add(id(parameter))
    params: list[dict[str, Any]] = [
        {"params": [p for _, p in g.parameters], "lr": 0.0, "weight_decay": 0.0} for g in groups
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(params, betas=recipe.betas, fused=fused)
    if recipe.optimizer == "sgd":
        sgd = torch.optim.SGD(params, lr=0.0, momentum=recipe.sgd_momentum, fused=fused)
        if fused:  # the kernel fails on a parameter whose first gradient comes late (DINO's prototypes)
            for parameter in (p for group in sgd.param_groups for p in group["params"]):
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if recipe.optimizer == "larc":
        return LARC(params, 0.0, recipe.sgd_momentum)
    layerwise = {"lars": LARS, "lars_inner": InnerLARS}.get(recipe.optimizer)
    if layerwise is None:
        raise ValueError(f"optimizer {recipe.optimizer!r}: expected adamw, sgd, lars, lars_inner or larc")
    for entry, group in zip(params, groups, strict=True):
        entry["adapt"] = group.adapt
    return layerwise(params, 0.0, recipe.sgd_momentum)


# Parameter groups -------------------------------------------------------------------------------------------


def split_by_decay(named: Iterable[tuple[str, nn.Parameter]]) -> list[ParameterGroup]:
    """Two groups: decayed, and not (biases, everything one-dimensional); LARS adapts the first only.

    Frozen parameters are left out.
    """
    trainable = [(name, p) for name, p in named if p.requires_grad]
    plain = [(name, p) for name, p in trainable if name.endswith(".bias") or p.ndim == 1]
    plain_names = {name for name, _ in plain}
    return [
        ParameterGroup("decayed", [(name, p) for name, p in trainable if name not in plain_names]),
        ParameterGroup("not decayed", plain, weight_decay="", adapt=False),
    ]


def split_by_shape(named: Iterable[tuple[str, nn.Parameter]], *, flat_lr: str = "lr") -> list[ParameterGroup]:
    """Two groups for LARS: one-dimensional parameters are neither decayed nor adapted (Barlow Twins, VICReg).

    Args:
        named: the trainable parameters; frozen ones are left out.
        flat_lr: schedule of the one-dimensional parameters' learning rate.
    """
    trainable = [(name, p) for name, p in named if p.requires_grad]
    flat = [(name, p) for name, p in trainable if p.ndim == 1]
    return [
        ParameterGroup("weights", [(name, p) for name, p in trainable if p.ndim != 1]),
        ParameterGroup("biases", flat, lr=flat_lr, weight_decay="", adapt=False),
    ]


# Clipping ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def clip_each(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale each tensor on its own, in place, by max_norm / (norm + 1e-6) where below 1 (DINO's clipping).

    Returns:
        The norms before, [len(gradients)].
    """
    if not gradients:
        return torch.zeros(0)
    parts = [local(gradient) for gradient in gradients]
    norms = torch.stack(torch._foreach_norm(parts))  # pyright: ignore
    if isinstance(gradients[0], DTensor):  # one is spread, all are: squares of the parts' norms add up
        norms = sum_over_processes(norms.square()).sqrt()
    scales = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(parts, list(scales.unbind()))  # pyright: ignore[reportPrivateImportUsage]
    return norms


def clip_and_freeze(module: nn.Module, max_norm: float, frozen: str | None = None) -> None:
    """Clip each gradient by itself, then leave some parameters out of the step (DINO and its kin).

    Args:
        module: the student.
        max_norm: largest norm of one tensor's gradient; 0 for no clipping.
        frozen: part of the names of parameters whose gradient becomes None, after clipping; None for none.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.grad is not None]
    if max_norm:
        clip_each([p.grad for _, p in named if p.grad is not None], max_norm)
    for name, p in named:
        if frozen is not None and frozen in name:
            p.grad = None


# Schedules: float64 arrays with one value per optimiser step ------------------------------------------------


def linspace_cosine(
    base: float, final: float, steps: int, *, warmup_steps: int = 0, start: float = 0.0
) -> np.ndarray:
    """Warmup linspace(start, base) with both ends, then final + (base - final)(1 + cos(pi i / n)) / 2, i < n.

    So ``base`` appears twice in a row and ``final`` is never reached: DINO, iBOT, EsViT, Mugs, SwAV, MEC and
    ReSA. With ``final=1`` and no warmup it is the momentum of every EMA teacher that follows a cosine.
    """
    warmup = np.linspace(start, base, warmup_steps)
    i = np.arange(steps - warmup_steps)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * i / max(len(i), 1)))
    return np.concatenate([warmup, cosine])[:steps]


def linear_cosine(base: float, final: float, steps: int, *, warmup_steps: float = 0) -> np.ndarray:
    """Warmup base * t / w, t < w; then final + (base - final)(1 + cos(pi (t - w) / (steps - w))) / 2.

    The first value is 0 when there is a warmup: MoCo v3, MAE, Barlow Twins, VICReg, VICRegL.
    """
    t = np.arange(steps, dtype=np.float64)
    rest = max(steps - warmup_steps, 1)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * (t - warmup_steps) / rest))
    return np.where(t < warmup_steps, base * t / max(warmup_steps, 1), cosine)


def epoch_cosine(base: float, final: float, epochs: int, steps_per_epoch: int) -> np.ndarray:
    """Final + (base - final)(1 + cos(pi e / epochs)) / 2 held for the whole epoch e: SimSiam, DenseCL."""
    epoch = np.repeat(np.arange(epochs), steps_per_epoch)
    return final + 0.5 * (base - final) * (1 + np.cos(math.pi * epoch / epochs))


def epoch_table(
    start: float, end: float, warmup_epochs: int, epochs: int, steps_per_epoch: int, *, delay: int = 0
) -> np.ndarray:
    """Teacher temperatures: linspace(start, end) over the warmup, then ``end``; one value per epoch.

    Before the warmup come ``delay`` epochs of ``start`` (iBOT's patches where masking begins later).
    """
    table = np.concatenate([np.full(delay, start), np.linspace(start, end, warmup_epochs)])[:epochs]
    return np.repeat(np.concatenate([table, np.full(epochs - len(table), end)]), steps_per_epoch)


def constant(value: float, steps: int) -> np.ndarray:
    """One value at every step."""
    return np.full(steps, value, dtype=np.float64)


def distillation(recipe: Any, plan: Plan) -> dict[str, np.ndarray]:
    """The schedules of DINO's family: per iteration, but the teacher's temperature per epoch.

    Args:
        recipe: must have ``lr`` (per 256 images), ``final_lr``, ``weight_decay``, ``final_weight_decay``,
            ``warmup_epochs``, ``teacher_momentum`` (a cosine takes it to 1), ``warmup_teacher_temperature``,
            ``teacher_temperature`` and ``teacher_temperature_epochs``.
        plan: the run.
    """
    r, steps, warmup = recipe, plan.total_steps, recipe.warmup_epochs * plan.steps_per_epoch
    return {
        "lr": linspace_cosine(r.lr * plan.batch_size / 256, r.final_lr, steps, warmup_steps=warmup),
        "weight_decay": linspace_cosine(r.weight_decay, r.final_weight_decay, steps),
        "teacher_momentum": linspace_cosine(r.teacher_momentum, 1.0, steps),
        "teacher_temperature": epoch_table(
            r.warmup_teacher_temperature,
            r.teacher_temperature,
            r.teacher_temperature_epochs,
            plan.epochs,
            plan.steps_per_epoch,
        ),
    }
