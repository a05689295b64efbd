"""One weight that is computed from stored tensors, or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dse_monitor.checkpoints.reading.contents import TensorRef

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Refusal:
    """Why a weight cannot be computed.

    Attributes:
        problem: what was found, as a clause.
        advice: what to do, as a clause.
    """

    problem: str
    advice: str


@dataclass(frozen=True)
class Folded:
    """How a weight of the network follows from the tensors of a state dict.

    Attributes:
        sources: names of the stored tensors, in the order `make` takes them.
        shape: shape of the result; () where a refused weight does not show it.
        make: turns the sources into the result.
        how: what kind of weight it is, in words; empty for one that is stored as it is used.
        refusal: why it cannot be computed; `make` is never called then.
    """

    sources: tuple[str, ...]
    shape: Shape
    make: Callable[[list[Tensor]], Tensor] = lambda tensors: tensors[0]
    how: str = ""
    refusal: Refusal | None = None


View = dict[str, Folded]


def as_stored(name: str, ref: TensorRef) -> Folded:
    """A tensor that is used as it is stored."""
    return Folded((name,), tuple(ref.shape))


def refused(parts: Sequence[Folded], shape: Shape, how: str, problem: str, advice: str) -> Folded:
    """A weight that cannot be computed from these parts."""
    sources = tuple(source for part in parts for source in part.sources)
    return Folded(sources, shape, _no_value, how, Refusal(problem, advice))


def computed(
    parts: Sequence[Folded], shape: Shape, how: str, function: Callable[[list[Tensor]], Tensor]
) -> Folded:
    """A weight that `function` makes of these parts, each of which may itself be computed or refused."""
    sources = tuple(source for part in parts for source in part.sources)
    words = ", ".join(dict.fromkeys([*(part.how for part in parts if part.how), how]))
    refusal = next((part.refusal for part in parts if part.refusal is not None), None)
    if refusal is not None:
        return Folded(sources, shape, _no_value, words, refusal)

    def make(tensors: list[Tensor]) -> Tensor:
        values: list[Tensor] = []
        taken = 0
        for part in parts:
            count = len(part.sources)
            values.append(part.make(tensors[taken : taken + count]))
            taken += count
        return function(values)

    return Folded(sources, shape, make, words)


def _no_value(_: list[Tensor]) -> Tensor:
    raise AssertionError("a refused weight was asked for its numbers")


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
