"""A network of the user's own (``--network``): built by his code, its weights read from the file by ours.

Only code that the user names is run. What the file holds is matched with the module's state dict strictly, by
name and shape: what the module lacks or the file lacks is an error that names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse_monitor.checkpoints.families.network import Network, NotThisNetwork, Piece, Stated
from dse_monitor.checkpoints.families.statedicts import Shape, StateDict, unwrapped
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt
from dse_monitor.checkpoints.network_code.running import Loaded, loaded, running
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.recognition import preparation
from dse_monitor.checkpoints.recognition.choice import Choice, choices_of, chosen, layout_of
from dse_monitor.checkpoints.recognition.contents import File, some
from dse_monitor.checkpoints.recognition.dialects import HEADS, Dialect, Found, Pieces
from dse_monitor.checkpoints.recognition.own_module import Made, Output, give_out, made, output_of, user_of
from dse_monitor.errors import NetworkError, UnknownLayout
from dse_monitor.facts import Fact
from dse_monitor.own_network import OwnNetwork
from dse_monitor.preprocessing import Preprocessing

_STATED = ("mean", "std", "interpolation", "crop_mode", "resize")  # fields that say how images are prepared


@dataclass(frozen=True)
class Fitted:
    """A network and where its tensors are, with the layout and the other networks of that file."""

    layout: Layout
    choices: Sequence[Choice]
    choice: Choice
    network: Network
    pieces: Pieces
    preprocessing: Preprocessing
    prepared: tuple[Fact, ...]


def fitted(file: File, options: ReadingOptions, stated: Mapping[str, Stated]) -> Fitted:
    """The user's network, and its tensors in this file.

    Args:
        file: what is in the checkpoint.
        options: name the network.
        stated: what options, the file, or a file beside it say of images.

    Raises:
        NetworkError, PluginError: his code cannot be run, or builds no network that can be used.
        UnknownLayout: the file does not hold that network.
        AmbiguousArchitecture: it holds several, or nothing says how images are normalised.
    """
    assert options.network is not None
    code = loaded(options.network, options.network_code)
    size = stated.get("image_size")
    asked = size.value if size is not None and size.source.startswith("--") else None
    one = made(code, asked)
    names = {_clean(name, one): name for name in one.shapes}
    places = _places(file.states, names, one)
    whole = [place for place in places if not place.problem]
    if not whole:
        raise UnknownLayout(_not_there(file, code, one, places))
    file.encoders = [place.found for place in whole]
    layout = layout_of(file, options.layout)
    choices = choices_of(layout, file.encoders, forced=options.layout is not None)
    choice = chosen(file, layout, choices, options.encoder)
    _refuse_left_over(file, code, one, choice.found, names, layout)
    try:
        pieces = _pieces(choice.found, names)
    except NotThisNetwork as error:  # weights kept in another form, of which it is not known how
        raise UnknownLayout(file.says(f"{choice.found.spelled!r}: {error}", "Save plain weights")) from error
    output, one = output_of(code, one, frozenset(pieces), lambda: made(code, asked))
    network = _network(code, one, output, frozenset(one.shapes) - pieces.keys())
    preprocessing, prepared = _prepared(code, one.own, network, stated)
    return Fitted(layout, choices, choice, network, pieces, preprocessing, prepared)


def _clean(name: str, one: Made) -> str:
    """A name of the module as state dicts are read: without wrapper modules, unless two would be one."""
    short = {unwrapped(each) for each in one.shapes}
    return unwrapped(name) if len(short) == len(one.shapes) else name


# Where it is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where some of the module's tensors are, and in words what keeps it from being all of them."""

    found: Found
    count: int
    problem: str


def _places(states: Sequence[StateDict], names: Mapping[str, str], one: Made) -> list[_Place]:
    """Every place in the file that holds tensors of the module under their names, in the file's order."""
    places = []
    wanted = one.own.prefix
    for state in states:
        below = _available(state)
        counts: Counter[str] = Counter()
        for name in below:
            start = 0
            while start >= 0:
                if name[start:] in names:
                    counts[name[:start]] += 1
                start = name.find(".", start) + 1 or -1
        for prefix, count in counts.items():
            held = {name: shape for name in names if (shape := below.get(prefix + name)) is not None}
            anchor = next(iter(held))
            found = Found(state, prefix, Dialect("network of one's own", "own", anchor, anchor))
            if wanted is None or _is_at(found, wanted):
                places.append(_Place(found, count, _problem(held, names, one)))
    return places


def _available(state: StateDict) -> dict[str, Shape]:
    """Shapes of the tensors as they are stored, and of those that are computed from them (weight norm, LoRA).

    A module that keeps its weights in such a form itself has them under the names they are stored under.
    """
    return {**state.below(""), **{name: tuple(ref.shape) for name, ref in state.tensors.items()}}


def _pieces(found: Found, names: Mapping[str, str]) -> Pieces:
    """How each tensor of the module is made from the file's.

    Raises:
        NotThisNetwork: one of them is stored in a form it cannot be computed from.
    """
    stored = {name: Piece((name,), tuple(ref.shape)) for name, ref in found.references().items()}
    computed = {} if all(name in stored for name in names) else found.pieces()
    return {own: piece for name, own in names.items() if (piece := stored.get(name) or computed.get(name))}


def _is_at(found: Found, wanted: str) -> bool:
    clean = wanted if not wanted or wanted.endswith((".", "/")) else f"{wanted}."
    return NetworkAt("", clean if "/" in clean else f"*/{unwrapped(clean)}").matches(found.location)


def _problem(held: Mapping[str, Any], names: Mapping[str, str], one: Made) -> str:
    missing = [name for clean, name in names.items() if name in one.needed and clean not in held]
    if missing:
        return f"{len(missing)} of its {len(one.needed)} tensors missing ({some(missing)})"
    odd = [clean for clean in held if tuple(held[clean]) != one.shapes[names[clean]]]
    if odd:
        first = odd[0]
        return (
            f"{len(odd)} tensors have other shapes, such as {names[first]}: {list(held[first])} instead of "
            f"{list(one.shapes[names[first]])}"
        )
    return ""


def _not_there(file: File, code: Loaded, one: Made, places: Sequence[_Place]) -> str:
    label = f"the network of {code.code.label} is not in it"
    at = f" below {one.own.prefix!r}" if one.own.prefix is not None else ""
    advice = "Have the function build the network that was trained, under the names it had there"
    if not places:
        return file.says(f"{label}: none of its tensors{at}, first {next(iter(one.shapes))!r}", advice)
    best = max(places, key=lambda place: place.count)
    return file.says(f"{label}: at {best.found.spelled!r}, {best.problem}", advice)


def _refuse_left_over(
    file: File, code: Loaded, one: Made, found: Found, names: Mapping[str, str], layout: Layout
) -> None:
    """Tensors beside the module's may belong to the network that was trained, unless they are known heads."""
    children = {name.split(".", 1)[0] for name in names}
    allowed = (*one.own.ignore, *layout.drop)
    folded, stored = found.state.folding.folded, found.references()
    left = []
    for name in found.shapes():
        form = folded.get(found.prefix + name)
        sources = {source[len(found.prefix) :] for source in form.sources} if form is not None else set()
        if name in names or name.startswith(allowed) or (sources and sources <= names.keys() & stored.keys()):
            continue
        first = name.split(".", 1)[0]
        if first in children or first not in HEADS:
            left.append(name)
    if left:
        group = left[0].split(".", 1)[0]
        raise UnknownLayout(
            file.says(
                f"beside the network of {code.code.label} at {found.spelled!r}, {len(left)} tensors have no "
                f"place in it ({some(left)})",
                "Have the function build them as well, or say that they change no token: "
                f"ignore=({group + '.'!r}, ...)",
            )
        )


# What it is -----------------------------------------------------------------------------------------------


def _network(code: Loaded, one: Made, output: Output, computed: frozenset[str]) -> Network:
    own = one.own
    facts = [_version(code)]
    if computed:
        listed = some([name for name in one.shapes if name in computed])
        facts.append(
            Fact(
                "buffers",
                f"{len(computed)} as the module makes them: {listed}",
                "not in the file",
                assumed=True,
            )
        )
    if output.assumed:
        rows, columns = output.grid
        facts.append(Fact("token grid", f"{rows} x {columns}", "their number is a square", assumed=True))
    if own.image_size is None and not own.transform:
        facts.append(Fact("image size", f"{one.image_size[0]} px", "as in most recipes", assumed=True))
    transform = None if own.transform is None else _Transform(code, own)
    return Network(
        family="own",
        description=f"{type(own.module).__name__} of {code.code.label}",
        build=lambda: give_out(own.module),
        tensors=one.shapes,
        buffers=one.buffers,
        tokens=user_of(code, own),
        grid=output.grid,
        width=output.width,
        channels=one.channels,
        image_size=one.image_size,
        any_size=own.any_size,
        layers=own.layers,
        convolutional=own.convolutional,
        facts=tuple(facts),
        computed=computed,
        transform=transform,
        transform_id="" if transform is None else code.identity,
    )


def _version(code: Loaded) -> Fact:
    """Which code it was: another version's numbers are not compared with these."""
    where = code.code
    source = (
        f"--network, of {' and '.join(where.files)}" if where.files else "--network, an installed package"
    )
    return Fact("network", f"{where.label}, {where.version}", source, usual=False)


def _prepared(
    code: Loaded, own: OwnNetwork, network: Network, stated: Mapping[str, Stated]
) -> tuple[Preprocessing, tuple[Fact, ...]]:
    """How images are prepared: as options say, then the user's code, then the file, then as is usual."""
    options = {name: each for name, each in stated.items() if each.source.startswith("--")}
    if own.transform is not None:
        if idle := sorted(options.keys() & {*_STATED, "image_size"}):
            raise NetworkError(
                f"--{idle[0].replace('_', '-')} has no meaning: the transform of {code.code.label} prepares "
                "images"
            )
        neutral = Preprocessing(
            channels=network.channels,
            image_size=network.image_size,
            mean=(0.0,) * network.channels,
            std=(1.0,) * network.channels,
        )
        return neutral, (
            Fact("preprocessing", "its own transform", f"transform of {code.code.label}", usual=False),
        )
    mine = {
        name: Stated(value, f"{name} of {code.code.label}")
        for name in _STATED
        if (value := getattr(own, name)) is not None
    }
    try:
        return preparation.preprocessing(network, {**stated, **mine, **options})
    except (NotThisNetwork, ValueError) as error:
        raise NetworkError(f"--network {code.code.label}: {error}") from error


class _Transform:
    """The user's transform, called with the path of an image; its errors say where they are.

    Attributes:
        suffixes: of the files it reads; None for any.
    """

    def __init__(self, code: Loaded, own: OwnNetwork):
        self._code, self._own = code, own
        self.suffixes = own.suffixes or None

    def __call__(self, path: Path) -> Any:
        assert self._own.transform is not None
        with running(self._code.code, "transform"):
            return self._own.transform(path)


__all__ = ["Fitted", "fitted"]
