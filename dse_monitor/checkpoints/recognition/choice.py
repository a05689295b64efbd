"""Which layout a checkpoint has, and which network in it is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dse_monitor.checkpoints import layouts
from dse_monitor.checkpoints.families.statedicts import unwrapped
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt, unwrapped_location
from dse_monitor.checkpoints.recognition import causes
from dse_monitor.checkpoints.recognition.contents import File, nearest
from dse_monitor.checkpoints.recognition.dialects import Found
from dse_monitor.errors import AmbiguousArchitecture, UnknownLayout


@dataclass(frozen=True)
class Choice:
    """A network of the layout that is really in the file."""

    name: str
    found: Found
    entry: NetworkAt | None = None


def layout_of(file: File, name: str | None) -> Layout:
    """The layout called `name`, or the first that recognises the file and finds an encoder in it.

    Raises:
        UnknownLayout: there is none.
    """
    if name is not None:
        try:
            return layouts.by_name(name, file.marks)
        except KeyError:
            known = ", ".join(layouts.REGISTRY.names())
            raise UnknownLayout(
                f"{file.path.name}: there is no layout {name!r}. Known: {known}; see `dse-monitor layouts`."
            ) from None
    for layout in layouts.matching(file.marks):
        if choices_of(layout, file.encoders):
            return layout
    if cause := causes.no_encoder(file.path, file.tree, file.states):
        raise UnknownLayout(file.says(cause.problem, cause.advice))
    raise UnknownLayout(
        file.says(
            "no encoder was recognised; a vision transformer, ResNet, Swin or ConvNeXt was expected, its "
            "tensors named as a known library names them",
            nearest(file),
        )
    )


def choices_of(layout: Layout, encoders: Sequence[Found], *, forced: bool = False) -> list[Choice]:
    """The layout's networks that are in the file, in the layout's order, each place once.

    Released files often hold the bare backbone. Where a layout reads a network in its own way (heads,
    epsilon), forcing it makes an encoder without a prefix its first network.
    """
    own_way = bool(layout.heads_by_width or layout.details or layout.norm_eps)
    chosen: dict[int, Choice] = {}
    for network in layout.networks:
        for found in encoders:
            own = forced and found.dialect.family == "own"  # the user's, whatever its tensors are called
            known = own or not layout.dialects or found.dialect.name in layout.dialects
            if known and id(found) not in chosen and network.matches(found.location):
                chosen[id(found)] = Choice(network.name, found, network)
    bare = [found for found in encoders if not found.prefix and len(found.state.path) < 2]
    if forced and own_way and not chosen and len(bare) == 1:
        return [Choice(layout.networks[0].name, bare[0], layout.networks[0])]
    return list(chosen.values())


def chosen(file: File, layout: Layout, choices: list[Choice], wanted: str | None) -> Choice:
    """The network that is evaluated: the one the user wants, or the layout's first.

    Raises:
        UnknownLayout: it is not in the file.
        AmbiguousArchitecture: several could be meant.
    """
    if wanted is not None:
        return _wanted(file, layout, choices, wanted)
    own = layout.named_by(file.tree)
    for choice in choices:
        if own is None or choice.found.location == unwrapped_location(own):
            rivals = [other for other in choices if other.entry is choice.entry and other is not choice]
            if own is None and any(not _same_tensors(choice.found, other.found) for other in rivals):
                places = ", ".join(repr(each.found.spelled) for each in (choice, *rivals))
                raise AmbiguousArchitecture(
                    file.says(
                        f"several networks could be meant (layout {layout.name!r}): {places}",
                        "Choose with --encoder PLACE",
                    )
                )
            return choice
    expected = " or ".join(repr(network.location) for network in layout.networks)
    raise UnknownLayout(
        file.says(
            f"layout {layout.name!r} keeps its encoder at {own or expected}, where there is none; "
            f"encoders are at {file.places()}",
            "Drop --layout, or choose with --encoder",
        )
    )


def _same_tensors(one: Found, other: Found) -> bool:
    """Whether two places hold the very same tensors: one module under two names."""
    mine, theirs = one.references(), other.references()
    return mine.keys() == theirs.keys() and all(mine[name] == theirs[name] for name in mine)


def _wanted(file: File, layout: Layout, choices: list[Choice], wanted: str) -> Choice:
    """The network the user named: by the layout's name for it, or by its place in the file."""
    for choice in choices:
        if choice.name == wanted:
            return choice
    clean = unwrapped(wanted.replace("/", ".")).strip(".")
    for found in file.encoders:
        dotted = found.location.replace("/", ".").strip(".")
        if clean in (dotted, found.prefix.strip("."), ".".join(found.state.path)):
            return Choice(wanted, found)
    names = ", ".join(dict.fromkeys(choice.name for choice in choices)) or "none"
    raise UnknownLayout(
        file.says(
            f"--encoder {wanted!r} is not in it. Layout {layout.name!r} has here: {names}; "
            f"encoders are at {file.places()}",
            "Pass one of these names or places",
        )
    )
