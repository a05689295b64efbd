"""LAYOUTS: one frozen entry per training code whose checkpoints are known. No torch is imported here.

A location is written ``path/prefix``: the keys that lead to a state dict, joined by dots, then a slash, then the
prefix its tensors carry; ``teacher/backbone.`` is ``checkpoint["teacher"]["backbone.*"]``. Wrapper modules such as
``module.`` and ``_orig_mod.`` are removed from every name before anything is compared, so one entry covers files
written with and without DistributedDataParallel or torch.compile.

To add a training code: one entry here, and the list of its tensor names in tests/data/layouts.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dse_monitor.checkpoints.statedicts import StateDict, unwrapped


@dataclass(frozen=True)
class NetworkAt:
    """One network of a file that can be evaluated.

    Attributes:
        name: what ``--encoder`` takes.
        location: ``path/prefix`` as the file spells it; ``*`` stands for anything.
    """

    name: str
    location: str

    def matches(self, location: str) -> bool:
        """Whether an unwrapped location is this one."""
        return fnmatch.fnmatchcase(location, unwrapped_location(self.location))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is known about the checkpoints of one training code.

    Attributes:
        name: what ``--layout`` takes.
        title: name of the method or library.
        origin: repository whose files these are.
        example: a file name it writes.
        needs: top-level keys, or locations of tensors, that must all be there.
        lacks: top-level keys or locations none of which may be there.
        networks: networks that can be evaluated; the first one found is the default.
        evaluated: why the default is the default.
        drop: prefixes below the encoder's own that belong to heads or decoders.
        epochs_from_field: added to the stored epoch to get finished epochs; None: the file stores no epoch.
        epochs_from_name: added to the number in the file name to get finished epochs; None: by the general rules.
        heads_by_width: attention heads of the models this code defines, by embedding width.
        norm_eps: epsilon of its LayerNorms where it differs from the family's usual one.
        details: values of a configuration that an architecture family understands.
        traps: what goes wrong silently when the file is read as something else.
        official: one of the sixteen methods of the DSE paper.
    """

    name: str
    title: str
    origin: str
    example: str
    needs: tuple[str, ...]
    networks: tuple[NetworkAt, ...]
    lacks: tuple[str, ...] = ()
    evaluated: str = ""
    drop: tuple[str, ...] = ()
    epochs_from_field: int | None = 0
    epochs_from_name: int | None = None
    heads_by_width: Mapping[int, int] = field(default_factory=dict)
    norm_eps: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    traps: tuple[str, ...] = ()
    official: bool = False

    def recognises(self, marks: frozenset[str]) -> bool:
        """Whether a file with these marks (see :func:`marks`) has this layout."""
        return all(need in marks for need in self.needs) and not any(lack in marks for lack in self.lacks)


def unwrapped_location(location: str) -> str:
    """`location` without wrapper modules in its prefix."""
    path, slash, prefix = location.partition("/")
    return path + slash + unwrapped(prefix)


def marks(tree: Any, states: Iterable[StateDict]) -> frozenset[str]:
    """What layouts are recognised by: top-level keys, and every dotted prefix of every tensor's location."""
    found: set[str] = set()
    if isinstance(tree, dict):
        found.update(str(key) for key in tree)
    for state in states:
        path = ".".join(state.path)
        for name in state.tensors:
            start = f"{path}/{name}"
            found.add(start)
            found.update(start[: dot.end()] for dot in re.finditer(r"\.", start) if dot.start() > len(path))
    return frozenset(found)


def by_name(name: str) -> Layout:
    """The entry called `name`.

    Raises:
        KeyError: there is none.
    """
    return {layout.name: layout for layout in LAYOUTS}[name]


def matching(found: frozenset[str], layouts: Sequence[Layout] | None = None) -> list[Layout]:
    """Entries that recognise a file with these marks, most specific first."""
    return [layout for layout in (LAYOUTS if layouts is None else layouts) if layout.recognises(found)]


_DINO_VITS = {
    192: 3,
    384: 6,
    768: 12,
    1024: 16,
}  # vision_transformer.py: vit_tiny, vit_small, vit_base, vit_large

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="dse-train",
        title="dse-train",
        origin="this project",
        example="checkpoint_0010.pth",
        needs=("format", "schema", "backbone", "evaluated", "model"),
        networks=(
            NetworkAt("teacher", "model/teacher.backbone."),
            NetworkAt("student", "model/student.backbone."),
        ),
        evaluated="the file names the evaluated network in 'evaluated'",
        epochs_from_name=0,
    ),
    # The sixteen methods of the DSE paper; the evaluated network is the one its numbers come from.
    Layout(
        name="dino",
        title="DINO",
        origin="facebookresearch/dino",
        example="checkpoint0010.pth",
        needs=("student", "teacher", "dino_loss", "teacher/backbone."),
        networks=(
            NetworkAt("teacher", "teacher/backbone."),
            NetworkAt("student", "student/module.backbone."),
        ),
        evaluated="the paper and the authors' own evaluation read the teacher",
        epochs_from_name=1,
        heads_by_width=_DINO_VITS,
        traps=("the file name counts from zero: checkpoint0010.pth holds eleven finished epochs",),
        official=True,
    ),
)

# What is used when no entry recognises the file but an encoder is plainly there.
PLAIN = Layout(
    name="plain",
    title="a state dict of any origin",
    origin="the field",
    example="model.pth",
    needs=(),
    networks=(
        NetworkAt("teacher", "*teacher*/*"),
        NetworkAt("teacher", "*/*teacher*"),
        NetworkAt("ema", "*ema*/*"),
        NetworkAt("ema", "*/*ema*"),
        NetworkAt("encoder", "*/*"),
    ),
    evaluated="a teacher or averaged copy where there is one",
)


def named_by_the_file(layout: Layout, tree: Any) -> str | None:
    """The location of the evaluated network where the file itself names it (dse-train), else None."""
    if layout.name == "dse-train" and isinstance(tree, dict) and isinstance(tree.get("evaluated"), str):
        return f"model/{tree['evaluated']}"
    return None
