"""Weights a file stores in another form than the network uses them in: computed from it, or refused by name.

torch and peft keep, in the place of a weight, what it is made of: a direction and a length (weight norm), a
weight and its singular vectors (spectral norm), a weight and a mask (pruning), a weight and two thin factors
(LoRA). Which of them follows from names alone, and so does the shape of the result; the arithmetic is done
when the tensors are read. Where the file lacks what the arithmetic needs, or the form is not known, the
weight is still listed under its name, and what to do is said as soon as anybody wants it. No torch is
imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dse_monitor.checkpoints.reading.contents import TensorRef
from dse_monitor.checkpoints.wrapped import adapters, norms, quantised
from dse_monitor.checkpoints.wrapped.folded import Folded, Refusal, as_stored


@dataclass(frozen=True)
class Folding:
    """What a state dict becomes.

    Attributes:
        folded: each weight that is computed or refused, by its name in the network.
        consumed: names of the stored tensors that only serve to compute others.
    """

    folded: Mapping[str, Folded] = field(default_factory=dict)
    consumed: frozenset[str] = frozenset()


def fold(tensors: Mapping[str, TensorRef], unread: Mapping[str, str], adapter: Any = None) -> Folding:
    """How a state dict's tensors become those of the network.

    Args:
        tensors: what is stored, by name.
        unread: values that stand for tensors and could not be read, by name, with the reason.
        adapter: content of peft's adapter_config.json beside the file; None without one.

    Returns:
        Empty for a state dict whose tensors are all the network's own.
    """
    marked = norms.is_marked(tensors) or adapters.is_marked(tensors) or quantised.is_marked(tensors)
    if not marked and not unread:
        return Folding()
    view = {name: as_stored(name, ref) for name, ref in tensors.items()}
    for name, reason in unread.items():
        view.setdefault(name, quantised.unread(name, reason))
    for step in (norms.folded, quantised.folded, lambda seen: adapters.folded(seen, adapter)):
        view = step(view)
    return Folding(
        folded={name: made for name, made in view.items() if made.how},
        consumed=frozenset(name for name in tensors if name not in view),
    )


__all__ = ["Folded", "Folding", "Refusal", "fold"]
