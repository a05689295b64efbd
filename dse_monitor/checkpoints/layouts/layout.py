"""What a layout is: how the checkpoints of one training code are recognised, and where their encoders are.

A location is written ``path/prefix``: the keys that lead to a state dict, joined by dots, then a slash, then
the prefix its tensors carry; ``teacher/backbone.`` is ``checkpoint["teacher"]["backbone.*"]``. Wrapper
modules such as ``module.`` and ``_orig_mod.`` are removed from every name before anything is compared,
so one entry covers files written with and without DistributedDataParallel or torch.compile.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dse_monitor.checkpoints.families.statedicts import StateDict, unwrapped
from dse_monitor.checkpoints.reading.contents import attributes


@dataclass(frozen=True)
class NetworkAt:
    """One network of a file that can be evaluated.

    Attributes:
        name: what ``--encoder`` takes.
        location: ``path/prefix`` as the file spells it; ``*`` stands for anything.
        unless: parts of a location that rule it out.
        beside: a mark (see :func:`marks`) the file must have for this entry to count; empty if none.
        because: why it comes before those after it, a clause; empty where the layout's `evaluated` says it.
    """

    name: str
    location: str
    unless: tuple[str, ...] = ()
    beside: str = ""
    because: str = ""

    def matches(self, location: str) -> bool:
        """Whether an unwrapped location is this one."""
        if any(part in location for part in self.unless):
            return False
        return fnmatch.fnmatchcase(location, unwrapped_location(self.location))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is known about the checkpoints of one training code.

    Attributes:
        name: what ``--layout`` takes.
        title: name of the method or library.
        origin: repository whose files these are.
        example: a file name it writes.
        needs: marks (see :func:`marks`) that must all be there.
        lacks: marks none of which may be there.
        networks: networks that can be evaluated; the first one found is the default.
        evaluated: why the default is the default.
        dialects: names of the dialects its encoders use; empty if any.
        drop: prefixes below the encoder's own that belong to heads or decoders.
        epochs_from_field: added to the stored epoch to get finished epochs.
        steps_from_field: added to the stored step to get finished steps.
        heads_by_width: attention heads of the models this code defines, by embedding width; of other widths
            nothing is known.
        defines: whether its networks are its own code's, so that what tensors do not show of them
            (activation, epsilon, positions, strides) is known.
        mean: per channel, what all its recipes normalise images with; empty if they differ.
        std: likewise.
        norm_eps: epsilon of its LayerNorms where it differs from the family's usual one.
        details: values of a configuration that an architecture family understands.
        traps: what goes wrong silently when the file is read as something else.
        official: one of the sixteen methods of the DSE paper.
        evaluated_field: key at the top of the file whose value names the default network itself, as a prefix
            below ``model``; empty where files do not.
    """

    name: str
    title: str
    origin: str
    example: str
    needs: tuple[str, ...]
    networks: tuple[NetworkAt, ...]
    lacks: tuple[str, ...] = ()
    evaluated: str = ""
    dialects: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    epochs_from_field: int = 0
    steps_from_field: int = 0
    heads_by_width: Mapping[int, int] = field(default_factory=dict)
    defines: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    norm_eps: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    traps: tuple[str, ...] = ()
    official: bool = False
    evaluated_field: str = ""

    def recognises(self, found: frozenset[str]) -> bool:
        """Whether a file with these marks has this layout."""
        return found.issuperset(self.needs) and found.isdisjoint(self.lacks)

    def fitted(self, found: frozenset[str]) -> Layout:
        """This layout for a file with these marks: without the networks that count only beside others."""
        networks = tuple(each for each in self.networks if not each.beside or each.beside in found)
        return self if networks == self.networks else dataclasses.replace(self, networks=networks)

    def named_by(self, tree: Any) -> str | None:
        """The location of the default network where the file names it itself, else None."""
        prefix = tree.get(self.evaluated_field) if isinstance(tree, dict) and self.evaluated_field else None
        return f"model/{prefix}" if isinstance(prefix, str) else None


def why_taken(entry: NetworkAt | None, others: Sequence[tuple[str, str]]) -> str | None:
    """A note that a file holds several networks and one was taken by rule; None where there was no choice.

    Args:
        entry: the network that was taken without the user's word for it.
        others: name and place of those that could be taken instead.
    """
    if entry is None or not entry.because or not others:
        return None
    names = ", ".join(f"{name} at {place!r}" for name, place in others[:3]) + (
        ", ..." if len(others) > 3 else ""
    )
    return (
        f"The file also holds {names}; {entry.name} is taken because {entry.because}. Choose with --encoder."
    )


def unwrapped_location(location: str) -> str:
    """`location` without wrapper modules in its prefix."""
    path, slash, prefix = location.partition("/")
    return path + slash + unwrapped(prefix)


def marks(tree: Any, states: Iterable[StateDict]) -> frozenset[str]:
    """What layouts are recognised by.

    ``key`` for every top-level key, ``key:name`` for the settings below it, and for every tensor its location
    and every dotted beginning of it (``teacher/backbone.``). Every part of these names, and its first word,
    is a mark of its own: ``context_encoder anywhere`` and ``context anywhere``.
    """
    found: set[str] = set()
    if isinstance(tree, dict):
        found.update(str(key) for key in tree)
        found.update(f"{key}:{name}" for key, value in tree.items() for name in attributes(value))
    parts: set[str] = set()
    for state in states:
        path = ".".join(state.path)
        parts.update(state.path)
        for name in state.weights:
            parts.update(name.split("."))
            location = f"{path}/{name}"
            found.add(location)
            found.update(f"{path}/{name[: dot.end()]}" for dot in re.finditer(r"\.", name))
    found.update(f"{word} anywhere" for part in parts for word in (part, part.split("_")[0]))
    return frozenset(found)
