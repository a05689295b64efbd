"""Weight norm, spectral norm, pruning and other parametrizations of torch, computed as the modules do.

Shapes: a weight is [C, ...]; its direction v has its shape, its length g [C, 1, ...]; the left singular
vector u is [C], the right one v [numel / C]. Names come in two kinds. ``torch.nn.utils.weight_norm``,
``spectral_norm`` and ``prune`` put a suffix to the weight's name (``weight_g``, ``weight_orig``,
``weight_mask``); ``torch.nn.utils.parametrize`` keeps ``parametrizations.weight.original`` and what the
parametrizations hold (``parametrizations.weight.0._u``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dse_monitor.checkpoints.wrapped.folded import Folded, Shape, View, computed, listed, refused

if TYPE_CHECKING:
    from torch import Tensor

_PARAMETRIZED = re.compile(r"((?:.*\.)?)parametrizations\.([^.]+)\.(original\d?|\d+\..+)")
_SUFFIXED = re.compile(r"((?:.*\.)?[^.]+)_(orig|mask|g|u|v)")
WEIGHT_NORM, SPECTRAL_NORM, PRUNED = "weight norm", "spectral norm", "pruning mask"
_REMOVE = "remove it from every module (torch.nn.utils.parametrize.remove_parametrizations) and save again"


def is_marked(names: Iterable[str]) -> bool:
    """Whether any name is one that these forms use."""
    return any(name.endswith(("_orig", "_g")) or "parametrizations." in name for name in names)


def folded(view: View) -> View:
    """The state dict with these forms computed; its other tensors stay."""
    groups: dict[str, dict[str, str]] = {}
    suffixed: dict[str, dict[str, str]] = {}
    for name in view:
        if match := _PARAMETRIZED.fullmatch(name):
            groups.setdefault(match[1] + match[2], {})[match[3]] = name
        elif match := _SUFFIXED.fullmatch(name):
            suffixed.setdefault(match[1], {})[match[2]] = name
    out = dict(view)
    for made, kind in ((groups, _parametrized), (suffixed, _with_suffix)):
        for target, parts in made.items():
            if target in view:  # stored under its own name as well: not one of these forms
                continue
            found = kind(target, {part: view[name] for part, name in parts.items()})
            if found is not None:
                for name in parts.values():
                    del out[name]
                out[target] = found
    return out


def _with_suffix(target: str, parts: Mapping[str, Folded]) -> Folded | None:
    """A weight by the older functions' names; None if the names mean something else."""
    there = set(parts)
    if there == {"orig", "mask"}:
        orig, mask = parts["orig"], parts["mask"]
        if mask.shape != orig.shape:
            return refused([orig, mask], orig.shape, PRUNED, f"{target}_mask has another shape", _REMOVE)
        return computed([orig, mask], orig.shape, PRUNED, lambda t: t[1].to(t[0].dtype) * t[0])
    if target.rpartition(".")[2] != "weight":
        return None
    if there == {"g", "v"}:
        return _weight_norm(target, parts["g"], parts["v"])
    if there == {"orig", "u", "v"}:
        return _spectral_norm(target, parts["orig"], parts["u"], parts["v"])
    if "orig" in there:
        return refused(
            list(parts.values()),
            parts["orig"].shape,
            "weight in parts",
            f"{target} is kept as {listed([f'{target}_{part}' for part in sorted(there)], 5)}, which no "
            "single known form of torch has (pruning, spectral norm)",
            "remove the pruning and norms (torch.nn.utils.prune.remove, remove_spectral_norm) and save again",
        )
    return None


def _parametrized(target: str, parts: Mapping[str, Folded]) -> Folded | None:
    """A weight by the names of ``torch.nn.utils.parametrize``."""
    there = set(parts)
    if there == {"original0", "original1"}:
        return _weight_norm(target, parts["original0"], parts["original1"])
    if there == {"original", "0._u", "0._v"}:
        return _spectral_norm(target, parts["original"], parts["0._u"], parts["0._v"])
    held = sorted(there - {"original", "original0", "original1"})
    if held == ["0.base"]:
        kind = "torch's orthogonal parametrization (it holds 0.base)"
    elif held:
        kind = f"a parametrization that is not known here (it holds {listed(held)})"
    else:
        kind = "a parametrization without tensors of its own (orthogonal, symmetric, ...), which is not known"
    shape = parts["original"].shape if "original" in parts else ()
    return refused(list(parts.values()), shape, "parametrization", f"{target} is computed by {kind}", _REMOVE)


def _weight_norm(target: str, length: Folded, direction: Folded) -> Folded:
    """``g * v / |v|``, the norm taken over every axis but the one along which g has numbers."""
    axis = _axis_of_length(length.shape, direction.shape)
    if axis is None:
        return refused(
            [length, direction],
            direction.shape,
            WEIGHT_NORM,
            f"{target} looks like weight norm, but its length is {list(length.shape)} for a direction of "
            f"{list(direction.shape)}",
            _REMOVE,
        )

    def make(tensors: list[Tensor]) -> Tensor:
        import torch

        # torch's own kernel, which both of torch's weight norms call: the same numbers to the last bit
        return torch.ops.aten._weight_norm(tensors[1].contiguous(), tensors[0].contiguous(), axis)

    return computed([length, direction], direction.shape, WEIGHT_NORM, make)


def _axis_of_length(length: Shape, direction: Shape) -> int | None:
    """Torch's ``dim``; -1 where one length is for the whole weight (``dim=None``); None if neither fits."""
    if not length:
        return -1 if direction else None
    if len(length) != len(direction):
        return None
    for axis, size in enumerate(direction):
        if length == (1,) * axis + (size,) + (1,) * (len(direction) - axis - 1):
            return axis
    return None


def _spectral_norm(target: str, weight: Folded, left: Folded, right: Folded) -> Folded:
    """``W / (u . W v)`` with the stored vectors, as in evaluation mode: no power iteration."""
    parts, numbers = [weight, left, right], math.prod(weight.shape)
    # torch's default is the first axis, but for transposed convolutions, which no encoder here has
    axes = [
        axis
        for axis, size in enumerate(weight.shape)
        if size and left.shape == (size,) and right.shape == (numbers // size,)
    ]
    if len(weight.shape) < 2 or not axes:
        return refused(
            parts,
            weight.shape,
            SPECTRAL_NORM,
            f"{target} looks like spectral norm, but its vectors are {list(left.shape)} and "
            f"{list(right.shape)} for a weight of {list(weight.shape)}",
            _REMOVE,
        )
    axis = axes[0]

    def make(tensors: list[Tensor]) -> Tensor:
        import torch

        whole, u, v = tensors
        matrix = whole.movedim(axis, 0).reshape(whole.shape[axis], -1)
        return whole / torch.dot(u, torch.mv(matrix, v))

    return computed(parts, weight.shape, SPECTRAL_NORM, make)
