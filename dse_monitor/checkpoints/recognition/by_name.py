"""A network that is named, by the user or by a record in or beside the file, and where its tensors lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dse_monitor.checkpoints.archive import Archive
from dse_monitor.checkpoints.families.network import Hints, Network, NotThisNetwork, Stated
from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.checkpoints.named import recorded, timm_networks, transformers_networks
from dse_monitor.checkpoints.named.places import nearest, places
from dse_monitor.checkpoints.named.timm_networks import Named
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.recognition.contents import File, some
from dse_monitor.checkpoints.recognition.dialects import HEADS, TRANSFORMERS, Found
from dse_monitor.errors import UnknownLayout


@dataclass(frozen=True)
class ByName:
    """A network of a known name.

    Attributes:
        spelled: the network in words.
        places: where all its tensors are in the file; empty if they are named otherwise there.
        build: the Network for a place's shapes; raises NotThisNetwork where they are not its own.
        asked: whether the user named it: then it may also be built from tensors that a dialect translates.
        binding: whether it is refused if the file's tensors are not its own, rather than passed over.
    """

    spelled: str
    places: tuple[Found, ...]
    build: Callable[[Mapping[str, Shape], Hints], Network]
    asked: bool
    binding: bool


def named_network(
    file: File, archive: Archive, options: ReadingOptions, stated: Mapping[str, Stated]
) -> ByName | None:
    """The network that the user or the file names; None if nothing does, or none that is built by its name.

    Raises:
        UnknownLayout: there is no such network, or the file is plainly another one.
    """
    if options.network is not None:
        return None
    try:
        if options.arch is not None:
            named = recorded.asked(options.arch, options.arch_option, stated.get("image_size"), archive)
            return _of_timm(file, replace(named, by_layer=options.layer != "last"), asked=True, binding=True)
        if options.layout is not None and not options.arch_option:
            return None  # read as that layout reads it
        found = _recorded(file, archive, options, stated)
    except NotThisNetwork as error:
        raise UnknownLayout(
            file.says(str(error), "Name a timm model and its arguments with --arch and --arch-option")
        ) from error
    if options.arch_option and found is None:
        raise UnknownLayout(
            file.says(
                "--arch-option says how a network is built, and no network is named", "Pass --arch NAME"
            )
        )
    return found


def _recorded(
    file: File, archive: Archive, options: ReadingOptions, stated: Mapping[str, Stated]
) -> ByName | None:
    try:
        record = recorded.record(archive)
    except NotThisNetwork as error:
        raise NotThisNetwork(f"{error}; --layout NAME reads it by its shapes alone") from error
    if record is None or not record.binding:
        described = transformers_networks.described(archive.config)
        if described is not None:
            return _of_transformers(file, described)
    if record is None:
        return None
    named = record.named
    if not record.binding and file.encoders and not recorded.tells_size(named.arch):
        return None  # its shapes say what it is
    if not timm_networks.is_known(named.arch):
        return None
    if options.arch_option:
        named = recorded.asked(named.arch, options.arch_option, stated.get("image_size"), archive)
    named = replace(named, by_layer=options.layer != "last")
    try:
        return _of_timm(file, named, asked=False, binding=record.binding)
    except NotThisNetwork as error:
        if not record.binding:
            return _passed_over(named, error)
        raise NotThisNetwork(f"{error}; --layout timm reads it by its shapes alone") from error


def _passed_over(named: Named, why: NotThisNetwork) -> ByName:
    """A network that is named by chance and not built, so that it can be said that it was passed over."""

    def refuse(shapes: Mapping[str, Shape], hints: Hints) -> Network:
        raise why

    return ByName(spelled=named.spelled, places=(), build=refuse, asked=False, binding=False)


def _of_timm(file: File, named: Named, *, asked: bool, binding: bool) -> ByName:
    made = timm_networks.plain(named)
    required = [name for name in made.required if name.split(".", 1)[0] not in HEADS]
    if not required:
        raise NotThisNetwork(f"{named.spelled} has no tensors but those of its head")
    found = places(required, file.states, "timm", "timm")
    if not found and "fc_norm.weight" not in required:  # pooled features are normed in place of the tokens
        unnormed = [name for name in required if not name.startswith("norm.")]
        found = places(unnormed, file.states, "timm", "timm")
        found = [one for one in found if "fc_norm.weight" in one.shapes()]
    if not found and not (asked and file.encoders):
        there, lacking = nearest(required, file.states)
        raise NotThisNetwork(
            f"{named.source} says {named.spelled}, and {len(lacking)} of its {len(required)} tensors are "
            f"missing ({some(lacking)})"
            + ("" if there else ": nothing in the file is named as timm names it")
        )
    return ByName(
        spelled=named.spelled,
        places=tuple(found),
        build=lambda shapes, hints: timm_networks.recognise(named, shapes, hints),
        asked=asked,
        binding=binding,
    )


def _of_transformers(file: File, network: transformers_networks.Described) -> ByName:
    stored = network.in_file
    outside = tuple(f"{name}." for name in network.tower.outside)
    required = [
        stored[name]
        for name in network.made.required
        if not name.startswith(outside) and name not in network.tower.outside
    ]
    found = places(required, file.states, TRANSFORMERS, "transformers", network.translate)
    if not found:
        _, lacking = nearest(required, file.states)
        raise NotThisNetwork(
            f"config.json says {network.spelled}, and {len(lacking)} of its {len(required)} tensors, named "
            f"as the installed release writes them, are missing ({some(lacking)})"
        )
    return ByName(
        spelled=network.spelled,
        places=tuple(found),
        build=lambda shapes, hints: transformers_networks.recognise(network, shapes, hints),
        asked=False,
        binding=True,
    )
