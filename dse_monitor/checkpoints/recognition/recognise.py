"""From an archive's tree to one encoder: which layout, which network in it, built how, at which epoch.

Nothing is read here but names and shapes; `load` reads the tensors afterwards, `inspect` explains what was
found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.network import Network, NotThisNetwork, Stated
from dse_monitor.checkpoints.layouts.layout import Layout, why_taken
from dse_monitor.checkpoints.names import from_name
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.recognition import (
    architecture,
    configuration,
    own,
    preparation,
    progress,
    statements,
)
from dse_monitor.checkpoints.recognition.by_name import ByName, named_network
from dse_monitor.checkpoints.recognition.choice import choices_of, chosen, layout_of
from dse_monitor.checkpoints.recognition.contents import OWN, File, counted, gaps
from dse_monitor.checkpoints.recognition.dialects import Found, Pieces, WrappedWeights
from dse_monitor.checkpoints.recognition.fit import fitted
from dse_monitor.errors import AmbiguousArchitecture, CheckpointError, UnknownLayout
from dse_monitor.facts import Fact
from dse_monitor.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn

    from dse_monitor.checkpoints.archive import Archive
    from dse_monitor.checkpoints.reading.contents import TensorRef


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """What would be evaluated, and why.

    Attributes:
        layout: entry of LAYOUTS or of a plugin.
        found: where the encoder is.
        encoder: name of the network in the layout, such as ``teacher``.
        network: the network its shapes describe, or that is named.
        preprocessing: how images are prepared for it.
        pieces: how each tensor of the network is made from tensors of the file.
        progress: epochs and steps done.
        facts: what changes its tokens and is not to be seen in the weights, with what each rests on.
        unused: names in the file of the tensors beside the encoder's, in its state dict, that are not read.
        others: networks that could be evaluated instead, as (name for ``--encoder``, location).
        notes: assumptions and oddities, in full sentences.
    """

    layout: Layout
    found: Found
    encoder: str
    network: Network
    preprocessing: Preprocessing
    pieces: Pieces
    progress: progress.Progress
    facts: tuple[Fact, ...] = ()
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


def recognise(
    archive: Archive,
    options: ReadingOptions | None = None,
    *,
    relative_path: str | None = None,
    scalars: Callable[[Sequence[TensorRef]], Sequence[float]] | None = None,
) -> Recognition:
    """Find the encoder of an opened checkpoint.

    Args:
        archive: the opened file.
        options: what the user says about it.
        relative_path: the path to read progress from, if the archive's own path does not say it all.
        scalars: reads tensors of one number each; without it, step counters kept as tensors are not used.

    Raises:
        UnknownLayout: no encoder was found, or a tensor of it is missing or has no place.
        AmbiguousArchitecture: several networks fit; says which, and the option that decides.
        NetworkError: the network of the user's own cannot be built or run.
    """
    options = options or ReadingOptions()
    file = File(archive)
    stated = statements.read(archive, options)
    if options.network is not None:
        fit = own.fitted(file, options, stated)
    else:
        fit = _fitted(archive, file, options, stated)
    entry, choice, network, pieces = fit.layout, fit.choice, fit.network, fit.pieces
    _check_types(file, fit)
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
        preprocessing=fit.preprocessing,
        pieces=pieces,
        progress=done,
        facts=(*network.facts, *fit.prepared),
        unused=tuple(name for clean, name in choice.found.state.names.items() if clean not in used),
        others=tuple((other.name, other.found.spelled) for other in fit.choices if other != choice),
        notes=(*archive.notes, *_taken(fit, options), *network.notes, *done.notes),
    )


def _check_types(file: File, fit: own.Fitted) -> None:
    """Refuse weights that are no real numbers: a quantised network is not what was trained.

    Raises:
        UnknownLayout: weights or biases are integers or complex numbers.
    """
    found, buffers = fit.choice.found, fit.network.buffers
    odd: list[tuple[str, str]] = []
    for name, piece in fit.pieces.items():
        if name in buffers or not name.endswith((".weight", ".bias")):
            continue
        types = (found.state.tensors[found.prefix + source].dtype for source in piece.sources)
        odd += [(name, dtype) for dtype in types if "float" not in dtype]
    if odd:
        name, dtype = odd[0]
        raise UnknownLayout(
            file.says(
                f"weights at {found.spelled!r} are not floating-point numbers ({len(odd)} of them, such as "
                f"{name}: {dtype})",
                "Save the weights as they are trained, before they are quantised or converted",
            )
        )


def _taken(fit: own.Fitted, options: ReadingOptions) -> tuple[str, ...]:
    """What to know of which tensors were taken: of several networks, and of weights kept in another form."""
    notes: list[str] = []
    if options.encoder is None:
        others = [(other.name, other.found.spelled) for other in fit.choices if other != fit.choice]
        why = why_taken(fit.choice.entry, others)
        notes += [why] if why else []
    computed = fit.choice.found.computed()
    if computed:
        notes.append(f"Weights are computed from what is stored: {', '.join(computed)}.")
    return tuple(notes)


def _fitted(
    archive: Archive, file: File, options: ReadingOptions, stated: Mapping[str, Stated]
) -> own.Fitted:
    """The network that is named, or that the shapes of the tensors describe."""
    named = named_network(file, archive, options, stated)
    if named is None:
        return _fitting(archive, file, options, stated, None)
    try:
        fit = _fitting(archive, file, options, stated, named)
    except UnknownLayout:
        if named.binding:
            raise
        fit = _fitting(archive, file, options, stated, None)
        note = f"The file names {named.spelled}, and its tensors are not that network's."
        network = dataclasses.replace(fit.network, notes=(note, *fit.network.notes))
        return dataclasses.replace(fit, network=network)
    return fit if named.asked else _told_apart(fit, archive, file, options, stated)


def _fitting(
    archive: Archive,
    file: File,
    options: ReadingOptions,
    stated: Mapping[str, Stated],
    named: ByName | None,
) -> own.Fitted:
    """Layout, its networks in the file, and the one that is evaluated with its pieces."""
    if named is not None and named.places:
        file = file.with_encoders(named.places)
    entry = layout_of(file, options.layout)
    choices = choices_of(entry, file.encoders, forced=options.layout is not None)
    choice = chosen(file, entry, choices, options.encoder)
    hints = configuration.hints(archive, entry, choice.found.dialect, stated, options)
    if options.layout is None and named is None:
        _check_model_type(file, choice.found, archive.config.get("model_type"))
    try:
        network, pieces = fitted(choice.found, entry, hints, named)
        preprocessing, prepared = preparation.preprocessing(network, hints.stated)
    except NotThisNetwork as error:
        raise UnknownLayout(_cannot_be_built(file, entry, choice.found, error)) from error
    except AmbiguousArchitecture as error:
        raise AmbiguousArchitecture(
            f"{file.path.name} ({archive.container}), layout {entry.name!r}, "
            f"{choice.found.spelled!r}: {error}."
        ) from error
    return own.Fitted(entry, choices, choice, network, pieces, preprocessing, prepared)


def _told_apart(
    fit: own.Fitted, archive: Archive, file: File, options: ReadingOptions, stated: Mapping[str, Stated]
) -> own.Fitted:
    """A record's network; its numbers are not joined with those of another that its shapes describe.

    Earlier versions of this package read shapes alone.
    """
    try:
        by_shapes = _fitting(archive, file, options, stated, None).network
        alike = architecture.computes_the_same(fit.network, by_shapes)
    except (CheckpointError, NotThisNetwork):
        return fit  # there are no such numbers
    facts = (
        dataclasses.replace(fact, usual=alike) if fact.name == "architecture" else fact
        for fact in fit.network.facts
    )
    return dataclasses.replace(fit, network=dataclasses.replace(fit.network, facts=tuple(facts)))


def _cannot_be_built(file: File, layout: Layout, found: Found, error: NotThisNetwork) -> str:
    place = f"the encoder at {found.spelled!r} (layout {layout.name!r})"
    if isinstance(error, WrappedWeights):
        return file.says(f"{place} cannot be read: {error.problem}", error.advice)
    names = list(found.shapes())
    lacking = [] if "backbone tensors missing" in str(error) else gaps(names)
    missing = f" ({counted(lacking, len(names))})" if lacking else ""
    return file.says(
        f"{place} cannot be built: {error}{missing}",
        f"Choose another network with --encoder, name a timm model with --arch, {OWN}",
    )


def _check_model_type(file: File, found: Found, model_type: Any) -> None:
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


__all__ = ["Recognition", "recognise"]
