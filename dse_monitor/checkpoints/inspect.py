"""What a checkpoint was taken for and why, without reading its weights: `dse-monitor inspect`."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse_monitor.checkpoints import layouts
from dse_monitor.checkpoints.archive import check_complete, open_archive
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.recognition.recognise import Recognition, recognise
from dse_monitor.checkpoints.scalars import read_scalars
from dse_monitor.facts import Fact
from dse_monitor.preprocessing import Preprocessing

WIDTH = 100  # columns of the text
SHOWN = 12  # names listed before the rest is counted


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything recognised in one checkpoint.

    Attributes:
        path: the file or folder.
        container: kind of file, in words.
        complete: whether nothing is missing from it.
        safe: always True when there is an inspection: data only, nothing was executed.
        layout: name of the layout.
        layout_title: what writes such files.
        encoder: name of the network that is evaluated.
        location: where it is in the file, as ``path/prefix``.
        evaluated_because: why this network is the default of its layout.
        network: the network in words.
        heads: attention heads and where they were read; empty without attention.
        layers: layers whose tokens can be asked for; 0 where only the last's can.
        preprocessing: how images are prepared for it.
        facts: what changes its tokens and is not to be seen in the weights, with what each rests on.
        num_tokens: tokens per image at that size.
        width: feature width.
        parameters: numbers the network holds.
        bytes_read: bytes of the file its tensors take.
        epoch: finished epochs, or None.
        epoch_source: where the epoch was read.
        step: finished optimiser steps, or None.
        step_source: where the step was read.
        missing: backbone tensors the file lacks; always empty, because a file that lacks one is refused.
        unused: tensors beside the encoder's, in the same state dict, that are not read.
        others: networks that could be evaluated instead, as (name, location).
        traps: what goes wrong silently with files of this layout.
        notes: assumptions and oddities.
        if_wrong: options that change what was recognised, with values that fit this file.
    """

    path: str
    container: str
    complete: bool
    safe: bool
    layout: str
    layout_title: str
    encoder: str
    location: str
    evaluated_because: str
    network: str
    heads: str
    layers: int
    preprocessing: Preprocessing
    facts: tuple[Fact, ...]
    num_tokens: int
    width: int
    parameters: int
    bytes_read: int
    epoch: float | None
    epoch_source: str
    step: int | None
    step_source: str
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    others: tuple[tuple[str, str], ...]
    traps: tuple[str, ...]
    notes: tuple[str, ...]
    if_wrong: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def inspect_checkpoint(
    path: str | os.PathLike[str],
    options: ReadingOptions | None = None,
    **fields: Any,
) -> Inspection:
    """What `load_encoder` with the same arguments would load, and why.

    Raises:
        CheckpointError: as `load_encoder`.
    """
    path = Path(path)
    complete = check_complete(path).whole
    with open_archive(path) as archive:
        found = recognise(
            archive,
            options or ReadingOptions(**fields),
            scalars=lambda refs: read_scalars(archive, refs),
        )
        container = archive.container
    network, done = found.network, found.progress
    return Inspection(
        path=str(path),
        container=container,
        complete=complete,
        safe=True,
        layout=found.layout.name,
        layout_title=found.layout.title,
        encoder=found.encoder,
        location=found.found.spelled,
        evaluated_because=found.layout.evaluated,
        network=network.description,
        heads=network.heads,
        layers=network.layers,
        preprocessing=found.preprocessing,
        facts=found.facts,
        num_tokens=network.num_tokens,
        width=network.width,
        parameters=network.parameters,
        bytes_read=sum(ref.nbytes for ref in found.sources().values()),
        epoch=done.epoch,
        epoch_source=done.epoch_source,
        step=done.step,
        step_source=done.step_source,
        missing=(),
        unused=found.unused,
        others=found.others,
        traps=found.layout.traps,
        notes=found.notes,
        if_wrong=_if_wrong(found),
    )


def render(inspection: Inspection) -> str:
    """The inspection as plain text, no line longer than 100 columns."""
    one = inspection
    because = one.evaluated_because if one.others else "the only network found in it"
    seen_heads = "" if any(fact.name == "heads" for fact in one.facts) else one.heads
    rows = [
        ("container", f"{one.container}, {'complete' if one.complete else 'incomplete'}"),
        ("safe", "yes: data only, nothing of the file was executed"),
        ("layout", f"{one.layout} ({one.layout_title})"),
        ("encoder", f"{one.encoder} at {one.location!r}; {because}"),
        ("network", one.network),
        ("heads", seen_heads),
        ("tokens", f"{one.num_tokens} x {one.width} at {_size(one.preprocessing)} px"),
        ("size", f"{one.parameters / 1e6:.1f} M parameters, {one.bytes_read / 1e6:.1f} MB read"),
        ("epoch", _done(one.epoch, one.epoch_source)),
        ("step", _done(one.step, one.step_source)),
        ("missing", "none"),
        ("unused", _listed(one.unused)),
        ("others", ", ".join(f"{name} at {place!r}" for name, place in one.others)),
    ]
    after = [
        *(("note", note) for note in one.notes),
        *(("trap", trap) for trap in one.traps),
        *(("if wrong", option) for option in one.if_wrong),
    ]
    lines = [one.path, *_rows(rows), *_not_in_the_weights(one.facts), *_rows(after)]
    return "\n".join(lines)


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    return [line for label, text in rows if text for line in _wrapped(label, text)]


def _not_in_the_weights(facts: tuple[Fact, ...]) -> list[str]:
    """What changes tokens and cannot be seen in tensors: first what is stated, then what was assumed."""
    lines: list[str] = []
    stated, assumed = ([fact for fact in facts if fact.assumed is kind] for kind in (False, True))
    for heading, group in (
        ("not in the weights, but known:", stated),
        ("not in the weights, ASSUMED:", assumed),
    ):
        if group:
            lines.append(f"  {heading}")
            width = max(len(fact.name) for fact in facts) + 1
            for fact in group:
                lines += _wrapped(fact.name, f"{fact.value} ({fact.source})", width, indent=4)
    return lines


def layouts_table() -> list[dict[str, str]]:
    """Every known layout as a row of text; see :func:`dse_monitor.checkpoints.layouts.table`."""
    return layouts.table()


# Of what is assumed, what an option of its own corrects; --arch and a configuration do for the rest.
_CORRECTED_BY = {
    "mean": "--mean and --std, such as --mean 0.5 --std 0.5, if images were normalised otherwise",
    "interpolation": "--interpolation NAME if another filter resizes images",
    "image size": "--image-size PIXELS if the network was made for other images",
}


def _if_wrong(found: Recognition) -> tuple[str, ...]:
    options = [f"--encoder {name} to evaluate {place!r}" for name, place in found.others]
    options.append("--layout NAME to read it as another layout (`dse-monitor layouts` lists them)")
    if found.network.heads and found.network.family in ("vit", "dinov3"):
        options.append("--num-heads N if the number of attention heads is another")
    assumed = {fact.name for fact in found.facts if fact.assumed}
    options += [advice for name, advice in _CORRECTED_BY.items() if name in assumed]
    options.append("--arch NAME to build a timm model by name")
    return tuple(options)


def _size(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.image_size
    return f"{height}" if height == width else f"{height} x {width}"


def _done(value: float | None, source: str) -> str:
    return "not stored and not in the name" if value is None else f"{value:g} done; {source}"


def _listed(names: tuple[str, ...]) -> str:
    """Names without their common numbers of blocks, the first few and a count."""
    groups: dict[str, int] = {}
    for name in names:
        head = ".".join(name.split(".")[:2])
        groups[head] = groups.get(head, 0) + 1
    shown = [name if count == 1 else f"{name}.* ({count})" for name, count in list(groups.items())[:SHOWN]]
    rest = len(groups) - SHOWN
    return (
        f"{len(names)}: {', '.join(shown)}" + (f" and {rest} more" if rest > 0 else "") if names else "none"
    )


def _wrapped(label: str, text: str, width: int = 10, indent: int = 2) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{' ' * indent}{label:<{width}} ",
        subsequent_indent=" " * (indent + width + 1),
        break_long_words=True,
        break_on_hyphens=False,
    )
