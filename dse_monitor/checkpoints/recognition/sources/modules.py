"""Whole modules that were pickled: their own attributes tell what a state dict leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dse_monitor.checkpoints.reading.contents import Opaque
from dse_monitor.checkpoints.recognition.sources import values
from dse_monitor.checkpoints.recognition.sources.values import Statement

MOST = 20_000  # modules looked at; the largest networks have some thousands

_LOCATION = ("decoder", "predictor", "head", "projector", "pool")
_KINDS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "ReLU": "relu", "SiLU": "silu"}


def read(tree: Any) -> Iterator[Statement]:
    """What the modules in a file say, if all of their layers agree."""
    heads: set[int] = set()
    epsilons: set[float] = set()
    activations: set[str] = set()
    for path, module in _modules(tree):
        state = module.state if isinstance(module.state, dict) else {}
        kind = module.name.rsplit(".", 1)[-1]
        if any(part in name for name in path for part in _LOCATION):
            continue
        if path and path[-1] in ("attn", "attention", "self_attention"):
            heads |= {found for found in [values.count(state.get("num_heads"))] if found}
        if kind == "LayerNorm":
            epsilons |= {found for found in [values.epsilon(state.get("eps"))] if found}
        if path and path[-1] in ("act", "activation", "act_fn", "relu") and kind in _KINDS:
            tanh = kind == "GELU" and state.get("approximate") == "tanh"
            activations.add("gelu_tanh" if tanh else _KINDS[kind])
    for name, found in (("num_heads", heads), ("norm_eps", epsilons), ("activation", activations)):
        if len(found) == 1:
            yield Statement(name, found.pop(), "the module that was pickled whole")


def _modules(tree: Any) -> Iterator[tuple[tuple[str, ...], Opaque]]:
    """Every module with the names that lead to it from the outermost one, each once."""
    seen: set[int] = set()
    stack: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while stack and len(seen) < MOST:
        path, value = stack.pop()
        if id(value) in seen or not isinstance(value, (dict, Opaque)):
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            stack += [((), item) for item in value.values() if isinstance(item, (dict, Opaque))]
            continue
        state = value.state if isinstance(value.state, dict) else {}
        children = state.get("_modules")
        if isinstance(children, dict):
            yield path, value
            stack += [((*path[-20:], str(name)[:60]), child) for name, child in children.items()]
