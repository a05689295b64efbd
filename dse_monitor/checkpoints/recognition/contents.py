"""What is in an opened checkpoint, ready to be matched with layouts and to be told in an error."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints import families, layouts
from dse_monitor.checkpoints.families.statedicts import StateDict, state_dicts
from dse_monitor.checkpoints.layouts.layout import marks
from dse_monitor.checkpoints.recognition import architecture
from dse_monitor.checkpoints.recognition.dialects import DIALECTS, Found

if TYPE_CHECKING:
    from dse_monitor.checkpoints.archive import Archive

# Lists of like modules, whose members should have the same tensors.
_REPEATED = frozenset(("blocks", "layer", "layers", "layer1", "layer2", "layer3", "layer4"))

# What helps with every network that is not known here; ends an advice.
OWN = "or give your own network with --network FILE.py:FUNCTION (docs/own_networks.md)"


class File:
    """What was found in an archive, ready to be matched and to be told in an error."""

    def __init__(self, archive: Archive):
        self.path = archive.path
        self.container = archive.container
        self.tree: Any = archive.tree
        self.states: list[StateDict] = state_dicts(archive.tree, archive.sidecars.get("adapter_config.json"))
        self.encoders: list[Found] = architecture.encoders(self.states)
        self.marks = marks(archive.tree, self.states) | _written_beside(archive.sidecars)
        self.left_out = [note for note in archive.notes if " not built: " in note]

    def with_encoders(self, encoders: Iterable[Found]) -> File:
        """The same file, in which these are the encoders."""
        other = copy.copy(self)
        other.encoders = list(encoders)
        return other

    def says(self, problem: str, advice: str) -> str:
        """One sentence each: the file and what is in it, the problem, what to do."""
        return f"{self.path.name} ({self.container}): {problem}. Found {self.contents()}. {advice}."

    def contents(self) -> str:
        """Top-level keys, the first weight, and tensors that could not be described."""
        keys = list(self.tree) if isinstance(self.tree, dict) else []
        shown = ", ".join(repr(str(key)[:60]) for key in keys[:8]) + (", ..." if len(keys) > 8 else "")
        first = next((f"{'.'.join(s.path)}/{name}" for s in self.states for name in s.names.values()), "")
        weights = f"first weight {first!r}" if first else "no tensors"
        return "; ".join([f"top level {shown or 'empty'}", weights, *self.left_out[:2]])

    def places(self) -> str:
        """Where encoders were found."""
        return ", ".join(repr(found.spelled) for found in self.encoders) or "none"


def _written_beside(sidecars: Mapping[str, Any]) -> frozenset[str]:
    """Marks of settings that a training code keeps beside its checkpoints instead of in them."""
    settings = sidecars.get("args.json")  # solo-learn's
    kept = settings if isinstance(settings, dict) and "method" in settings and "backbone" in settings else {}
    return frozenset(f"hyper_parameters:{name}" for name in kept)


def nearest(file: File) -> str:
    """The layout most of whose marks are there, and what it misses; ends with the option that helps."""
    scored = [
        (sum(need in file.marks for need in layout.needs) / len(layout.needs), layout)
        for layout in layouts.known()
        if layout.needs
    ]
    share, layout = max(scored, key=lambda pair: pair[0], default=(0.0, None))
    half, needs, lacking = _half_an_encoder(file)
    said = []
    if layout is not None and share >= 0.5:
        said += [need for need in layout.needs if need not in file.marks]
    hint = ""
    if half:
        hint = f"Nearest: {layout.name!r} " if layout is not None and share >= 0.5 else "Nearest: "
        hint += f"({counted(lacking, half)}{''.join(f', {mark} missing' for mark in said)}): "
        hint += f"{needs!r} is there but {lacking[0]!r} is not. "
    elif layout is not None and share >= 0.5:
        hint = f"Nearest: {layout.name!r}" + (f" ({', '.join(said)} missing)" if said else "") + ". "
    if isinstance(file.tree, dict) and isinstance(file.tree.get("shadow_params"), (list, tuple)):
        hint += "'shadow_params' are averaged weights without names, which cannot be told apart. "
    return f"{hint}Choose with --layout NAME (`dse-monitor layouts` lists them) or --encoder PREFIX, {OWN}"


def _half_an_encoder(file: File) -> tuple[int, str, list[str]]:
    """How many tensors an encoder without its first one has, what it was known by, and names it lacks."""
    for dialect in (*DIALECTS, *families.dialects()):
        for state in file.states:
            for name in state.weights:
                if name != dialect.needs and not name.endswith(f".{dialect.needs}"):
                    continue
                prefix = name[: len(name) - len(dialect.needs)]
                if prefix + dialect.anchor not in state.weights:
                    names = list(state.below(prefix))
                    return len(names), dialect.needs, [dialect.anchor, *gaps(names)]
    return 0, "", []


def gaps(names: Iterable[str]) -> list[str]:
    """What some of several numbered siblings have and others lack: `blocks.1.norm2.bias`."""
    siblings: dict[str, dict[int, set[str]]] = {}
    for name in names:
        if match := re.fullmatch(r"(.*?)\.(\d+)\.(.+)", name):
            siblings.setdefault(match[1], {}).setdefault(int(match[2]), set()).add(match[3])
    return [
        f"{parent}.{number}.{rest}"
        for parent, children in siblings.items()
        for number in range(min(max(children) + 1, 1000))
        for rest in sorted(set[str]().union(*children.values()) - children.get(number, set()))
        if parent.rsplit(".", 1)[-1] in _REPEATED
        and not re.match(r"\d|blocks\.|.*(?:downsample|shortcut)", rest)  # not every member has these
    ]


def counted(lacking: list[str], there: int) -> str:
    """How many tensors lack beside those that are there, and the first of them."""
    return f"{len(lacking)} of {there + len(lacking)} backbone tensors missing: {some(lacking)}"


def some(names: list[str]) -> str:
    """The first names, and whether there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
