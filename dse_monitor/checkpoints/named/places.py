"""Where in a file a network lies whose tensors' names are known: a state dict, and a prefix below it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from dse_monitor.checkpoints.families.statedicts import StateDict
from dse_monitor.checkpoints.recognition.dialects import DIALECTS, Dialect, Found
from dse_monitor.checkpoints.recognition.translations.pieces import Pieces


def places(
    names: Collection[str],
    states: Iterable[StateDict],
    dialect: str,
    family: str,
    translate: Callable[[Pieces], Pieces] = lambda pieces: pieces,
) -> list[Found]:
    """Every place below which all of these tensors are, in the file's order.

    Where a known dialect finds an encoder at the same place, its name is kept, as layouts ask for it.

    Args:
        names: tensors that must be there; the first of them leads to the places.
        states: the file's dictionaries of tensors.
        dialect: what the way of naming is called where no known dialect names the place.
        family: family of the network.
        translate: the file's names into those of the network.
    """
    first, *rest = names
    found: list[Found] = []
    for state in states:
        for name in state.weights:
            if name != first and not name.endswith("." + first):
                continue
            prefix = name[: len(name) - len(first)]
            if all(prefix + other in state.weights for other in rest):
                known = "" if family == "transformers" else _known(state, prefix)
                last = rest[-1] if rest else first
                found.append(Found(state, prefix, Dialect(known or dialect, family, first, last, translate)))
    return found


def nearest(names: Sequence[str], states: Iterable[StateDict]) -> tuple[int, list[str]]:
    """At the place that has most of these tensors: how many are there, and those that lack."""
    best: tuple[int, list[str]] = (0, list(names))
    for state in states:
        prefixes = {
            name[: len(name) - len(known)]
            for known in (names[0], names[len(names) // 2], names[-1])
            for name in state.weights
            if name == known or name.endswith("." + known)
        }
        for prefix in sorted(prefixes):
            lacking = [name for name in names if prefix + name not in state.weights]
            best = max(best, (len(names) - len(lacking), lacking), key=lambda pair: pair[0])
    return best


def _known(state: StateDict, prefix: str) -> str:
    for dialect in DIALECTS:
        there = prefix + dialect.anchor in state.weights and prefix + dialect.needs in state.weights
        if there and not (dialect.lacks and prefix + dialect.lacks in state.weights):
            return dialect.name
    return ""
