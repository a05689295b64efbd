"""From an archive's tree to one encoder: which layout, which network in it, built how, at which epoch.

Nothing is read here but names and shapes; `load` reads the tensors afterwards, `inspect` explains what was
found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints import families, layouts
from dse_monitor.checkpoints.families.network import POOLED_NORM, Hints, Network, NotThisNetwork, Piece
from dse_monitor.checkpoints.families.statedicts import Shape, StateDict, state_dicts, unwrapped
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt, marks, unwrapped_location
from dse_monitor.checkpoints.names import from_name
from dse_monitor.checkpoints.recognition import architecture, configuration, progress
from dse_monitor.checkpoints.recognition.dialects import DIALECTS, Found, Pieces
from dse_monitor.errors import AmbiguousArchitecture, UnknownLayout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dse_monitor.checkpoints.archive import Archive
    from dse_monitor.checkpoints.reading.contents import TensorRef

# Modules that sit on an encoder, or feed it during training, and take no part in its dense tokens.
HEADS = frozenset(
    (
        "head", "head_dist", "heads", "fc", "fc_norm", "classifier", "last_linear", "pre_logits",
        "attn_pool", "pooler", "projector", "projection", "projection_head", "proj_head", "predictor",
        "prediction_head", "prototypes", "linear", "decoder", "mask_token", "masked_embed",
        "relation_blocks", "queue", "queue_ptr", "lm_head", "dino_head", "ibot_head", "head_dense",
        "n_averaged", "local_cls_norm", "cls_norm",
    )
)  # fmt: skip


# Lists of like modules, whose members should have the same tensors.
_REPEATED = frozenset(("blocks", "layer", "layers", "layer1", "layer2", "layer3", "layer4"))


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """What would be evaluated, and why.

    Attributes:
        layout: entry of LAYOUTS or of a plugin.
        found: where the encoder is.
        encoder: name of the network in the layout, such as ``teacher``.
        network: the network its shapes describe.
        pieces: how each tensor of the network is made from tensors of the file.
        progress: epochs and steps done.
        unused: names in the file of the tensors beside the encoder's, in its state dict, that are not read.
        others: networks that could be evaluated instead, as (name for ``--encoder``, location).
        notes: assumptions and oddities, in full sentences.
    """

    layout: Layout
    found: Found
    encoder: str
    network: Network
    pieces: Pieces
    progress: progress.Progress
    unused: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def module(self) -> nn.Module:
        """The network, built but without weights.

        Raises:
            UnknownLayout: the installed timm builds it otherwise, or not at all.
        """
        try:
            return architecture.build(self.network)
        except NotThisNetwork as error:
            raise UnknownLayout(
                f"the encoder at {self.found.spelled!r} (layout {self.layout.name!r}) cannot be built: "
                f"{error}"
            ) from error

    def sources(self) -> dict[str, TensorRef]:
        """The tensors to read, each once, by their name below the prefix."""
        names = dict.fromkeys(name for piece in self.pieces.values() for name in piece.sources)
        return {name: self.found.state.tensors[self.found.prefix + name] for name in names}


@dataclass(frozen=True)
class _Choice:
    """A network of the layout that is really in the file."""

    name: str
    found: Found
    entry: NetworkAt | None = None


def recognise(
    archive: Archive,
    *,
    layout: str | None = None,
    encoder: str | None = None,
    arch: str | None = None,
    num_heads: int | None = None,
    relative_path: str | None = None,
    scalars: Callable[[Sequence[TensorRef]], Sequence[float]] | None = None,
) -> Recognition:
    """Find the encoder of an opened checkpoint.

    Args:
        archive: the opened file.
        layout: name of a layout, instead of the recognised one.
        encoder: which network to take: a name the layout knows, or a location such as ``teacher/backbone.``.
        arch: name of a timm model to build, instead of reading the architecture off the shapes.
        num_heads: attention heads of a vision transformer.
        relative_path: the path to read progress from, if the archive's own path does not say it all.
        scalars: reads tensors of one number each; without it, step counters kept as tensors are not used.

    Raises:
        UnknownLayout: no encoder was found, or a tensor of it is missing or has no place.
        AmbiguousArchitecture: several networks fit; says which, and the option that decides.
    """
    file = _File(archive)
    entry = _layout(file, layout)
    choices = _choices(entry, file.encoders, forced=layout is not None)
    choice = _chosen(file, entry, choices, encoder)
    hints = configuration.hints(
        archive.tree, archive.config, entry, choice.found.dialect, num_heads=num_heads
    )
    if layout is None and arch is None:
        _check_model_type(file, choice.found, archive.config.get("model_type"))
    try:
        network, pieces = _network(choice.found, entry, hints, arch)
    except NotThisNetwork as error:
        names = list(choice.found.shapes())
        gaps = [] if "backbone tensors missing" in str(error) else _gaps(names)
        counted = f" ({_counted(gaps, len(names))})" if gaps else ""
        raise UnknownLayout(
            file.says(
                f"the encoder at {choice.found.spelled!r} (layout {entry.name!r}) cannot be built: {error}"
                f"{counted}",
                "Choose another network with --encoder, or name a timm model with --arch",
            )
        ) from error
    except AmbiguousArchitecture as error:
        raise AmbiguousArchitecture(
            f"{file.path.name} ({archive.container}), layout {entry.name!r}, "
            f"{choice.found.spelled!r}: {error}."
        ) from error
    done = progress.read(
        {**archive.tree, **_trainer_state(archive)} if isinstance(archive.tree, dict) else {},
        from_name(relative_path or "/".join(archive.path.absolute().parts[-3:])),
        epochs_from_field=entry.epochs_from_field,
        steps_from_field=entry.steps_from_field,
        scalars=scalars,
    )
    used = {choice.found.prefix + name for piece in pieces.values() for name in piece.sources}
    return Recognition(
        layout=entry,
        found=choice.found,
        encoder=choice.name,
        network=network,
        pieces=pieces,
        progress=done,
        unused=tuple(name for clean, name in choice.found.state.names.items() if clean not in used),
        others=tuple((other.name, other.found.spelled) for other in choices if other != choice),
        notes=(*archive.notes, *network.notes, *done.notes),
    )


def _check_model_type(file: _File, found: Found, model_type: Any) -> None:
    """Refuse what config.json calls another network, whatever its tensors' names look like."""
    known = found.dialect.model_types
    if known and isinstance(model_type, str) and model_type not in known:
        raise UnknownLayout(
            file.says(
                f"config.json says model_type {model_type[:60]!r}, which is not read; tensors named as these "
                f"are read for {', '.join(known)}",
                "If the network is one of them all the same, pass --layout huggingface; or name a timm model "
                "with --arch",
            )
        )


def _trainer_state(archive: Archive) -> dict[str, Any]:
    """Hugging Face's trainer_state.json, under a name of its own."""
    state = archive.sidecars.get("trainer_state.json")
    return {"trainer_state": state} if isinstance(state, dict) else {}


class _File:
    """What was found in an archive, ready to be matched and to be told in an error."""

    def __init__(self, archive: Archive):
        self.path = archive.path
        self.container = archive.container
        self.tree: Any = archive.tree
        self.states: list[StateDict] = state_dicts(archive.tree)
        self.encoders: list[Found] = architecture.encoders(self.states)
        self.marks = marks(archive.tree, self.states)
        self.left_out = [note for note in archive.notes if " not built: " in note]

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


def _layout(file: _File, name: str | None) -> Layout:
    if name is not None:
        try:
            return layouts.by_name(name)
        except KeyError:
            known = ", ".join(layouts.REGISTRY.names())
            raise UnknownLayout(
                f"{file.path.name}: there is no layout {name!r}. Known: {known}; see `dse-monitor layouts`."
            ) from None
    for layout in layouts.matching(file.marks):
        if _choices(layout, file.encoders):
            return layout
    raise UnknownLayout(
        file.says(
            "no encoder was recognised; a vision transformer, ResNet, Swin or ConvNeXt was expected, its "
            "tensors named as a known library names them",
            _nearest(file),
        )
    )


def _nearest(file: _File) -> str:
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
        hint += f"({_counted(lacking, half)}{''.join(f', {mark} missing' for mark in said)}): "
        hint += f"{needs!r} is there but {lacking[0]!r} is not. "
    elif layout is not None and share >= 0.5:
        hint = f"Nearest: {layout.name!r}" + (f" ({', '.join(said)} missing)" if said else "") + ". "
    if isinstance(file.tree, dict) and isinstance(file.tree.get("shadow_params"), (list, tuple)):
        hint += "'shadow_params' are averaged weights without names, which cannot be told apart. "
    return hint + "Choose with --layout NAME (`dse-monitor layouts` lists them) or --encoder PREFIX"


def _half_an_encoder(file: _File) -> tuple[int, str, list[str]]:
    """How many tensors an encoder without its first one has, what it was known by, and names it lacks."""
    for dialect in (*DIALECTS, *families.dialects()):
        for state in file.states:
            for name in state.tensors:
                if name != dialect.needs and not name.endswith(f".{dialect.needs}"):
                    continue
                prefix = name[: len(name) - len(dialect.needs)]
                if prefix + dialect.anchor not in state.tensors:
                    names = list(state.below(prefix))
                    return len(names), dialect.needs, [dialect.anchor, *_gaps(names)]
    return 0, "", []


def _gaps(names: Iterable[str]) -> list[str]:
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


def _counted(lacking: list[str], there: int) -> str:
    return f"{len(lacking)} of {there + len(lacking)} backbone tensors missing: {_some(lacking)}"


def _choices(layout: Layout, encoders: Sequence[Found], *, forced: bool = False) -> list[_Choice]:
    """The layout's networks that are in the file, in the layout's order, each place once.

    Released files often hold the bare backbone. Where a layout reads a network in its own way (heads,
    epsilon), forcing it makes an encoder without a prefix its first network.
    """
    own_way = bool(layout.heads_by_width or layout.details or layout.norm_eps)
    chosen: dict[int, _Choice] = {}
    for network in layout.networks:
        for found in encoders:
            known = not layout.dialects or found.dialect.name in layout.dialects
            if known and id(found) not in chosen and network.matches(found.location):
                chosen[id(found)] = _Choice(network.name, found, network)
    bare = [found for found in encoders if not found.prefix and len(found.state.path) < 2]
    if forced and own_way and not chosen and len(bare) == 1:
        return [_Choice(layout.networks[0].name, bare[0], layout.networks[0])]
    return list(chosen.values())


def _chosen(file: _File, layout: Layout, choices: list[_Choice], wanted: str | None) -> _Choice:
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


def _wanted(file: _File, layout: Layout, choices: list[_Choice], wanted: str) -> _Choice:
    """The network the user named: by the layout's name for it, or by its place in the file."""
    for choice in choices:
        if choice.name == wanted:
            return choice
    clean = unwrapped(wanted.replace("/", ".")).strip(".")
    for found in file.encoders:
        dotted = found.location.replace("/", ".").strip(".")
        if clean in (dotted, found.prefix.strip("."), ".".join(found.state.path)):
            return _Choice(wanted, found)
    names = ", ".join(dict.fromkeys(choice.name for choice in choices)) or "none"
    raise UnknownLayout(
        file.says(
            f"--encoder {wanted!r} is not in it. Layout {layout.name!r} has here: {names}; "
            f"encoders are at {file.places()}",
            "Pass one of these names or places",
        )
    )


def _network(found: Found, layout: Layout, hints: Hints, arch: str | None) -> tuple[Network, Pieces]:
    """The network, and exactly the pieces it needs: none missing, none of the encoder left over.

    Raises:
        NotThisNetwork: see above, naming the first tensors concerned.
        AmbiguousArchitecture: from the family.
    """
    if arch is None:
        pieces = _backbone(found.pieces(), layout)
        network = architecture.recognise(found.dialect.family, _shapes(pieces), hints)
    else:
        pieces = _backbone({name: Piece((name,), shape) for name, shape in found.shapes().items()}, layout)
        network = architecture.named(arch, _shapes(pieces), hints)
        names = {name for name in network.tensors if name.split(".", 1)[0] not in HEADS}
        if names - pieces.keys():  # the file does not use this model's own names
            pieces = max(pieces, _backbone(found.pieces(), layout), key=lambda p: len(names & p.keys()))
    pieces = {**pieces, **{name: _composed(piece, pieces) for name, piece in network.renamed.items()}}
    pieces = {name: piece for name, piece in pieces.items() if not name.startswith(f"{POOLED_NORM}.")}
    wanted = dict(network.tensors)
    if arch is not None:  # a head of a named model reads pooled features: it may stay as it was made
        wanted = {name: shape for name, shape in wanted.items() if name.split(".", 1)[0] not in HEADS}
    missing = [name for name in wanted if name not in pieces and not name.endswith("num_batches_tracked")]
    left_over = [name for name in pieces if name not in wanted]
    if missing or left_over:
        problems = []
        if missing:
            problems.append(f"{len(missing)} of {len(wanted)} backbone tensors missing ({_some(missing)})")
        if left_over:
            problems.append(f"{len(left_over)} of its tensors have no place in it ({_some(left_over)})")
        raise NotThisNetwork(f"as {network.description}, {' and '.join(problems)}")
    odd = [name for name in wanted if name in pieces and pieces[name].shape != wanted[name]]
    if odd:
        raise NotThisNetwork(
            f"as {network.description}, {len(odd)} tensors have other shapes, such as {odd[0]}: "
            f"{list(pieces[odd[0]].shape)} instead of {list(wanted[odd[0]])}"
        )
    return network, pieces


def _composed(piece: Piece, pieces: Pieces) -> Piece:
    """A piece made from other pieces of the network, as one made from the file's tensors."""
    parts = [pieces[name] for name in piece.sources]

    def make(tensors: list[Tensor]) -> Tensor:
        values: list[Tensor] = []
        taken = 0
        for part in parts:
            values.append(part.make(tensors[taken : taken + len(part.sources)]))
            taken += len(part.sources)
        return piece.make(values)

    return Piece(tuple(source for part in parts for source in part.sources), piece.shape, make)


def _backbone(pieces: Pieces, layout: Layout) -> Pieces:
    """Without heads, decoders and what else the layout drops."""
    return {
        name: piece
        for name, piece in pieces.items()
        if name.split(".", 1)[0] not in HEADS and not (layout.drop and name.startswith(layout.drop))
    }


def _shapes(pieces: Pieces) -> dict[str, Shape]:
    return {name: piece.shape for name, piece in pieces.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


__all__ = ["Recognition", "recognise"]
