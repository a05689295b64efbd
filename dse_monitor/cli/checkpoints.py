"""`dse-monitor inspect` and `layouts`: what a checkpoint is taken for, and what is known."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.cli.printing import print_json
from dse_monitor.errors import RunError
from dse_monitor.flags import Flag


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Say what is recognised in a checkpoint, and why.

    Reads names and shapes; nothing of the file is executed.

    Examples:
        dse-monitor inspect runs/exp1/checkpoint_0010.pth
        dse-monitor inspect model.safetensors --arch vit_base_patch16_224
    """

    path: Annotated[Path, Flag(positional=True, metavar="CKPT")]
    """Checkpoint file or folder."""
    reading: ReadingOptions = ReadingOptions()  # noqa: RUF009  frozen
    """What is known about it."""
    json: bool = False
    """Print one JSON object."""


def inspect(options: InspectOptions) -> int:
    """Print what was recognised."""
    from dse_monitor.checkpoints.inspect import inspect_checkpoint, render

    found = inspect_checkpoint(options.path, options.reading)
    print_json(found.to_json()) if options.json else print(render(found))
    return 0


@dataclass(frozen=True, kw_only=True)
class LayoutsOptions:
    """List the training codes whose checkpoints are known by name.

    docs/layouts.md says more of each.

    Examples:
        dse-monitor layouts
        dse-monitor layouts --json
    """

    json: bool = False
    """Print all that is known of each, one JSON object per line."""


def layouts(options: LayoutsOptions) -> int:
    """Print the table of layouts."""
    from dse_monitor.checkpoints.inspect import layouts_table

    table = layouts_table()
    if options.json:
        for row in table:
            print_json(row)
        return 0
    columns = ("name", "example", "evaluated")
    rows = [dict(zip(columns, columns, strict=True)), *table]
    widths = {name: max(len(row[name]) for row in rows) for name in columns}
    for row in rows:
        print("  ".join(row[name].ljust(widths[name]) for name in columns).rstrip())
    return 0


def check_layout(name: str | None) -> None:
    """Refuse the name of a layout that does not exist before anything is measured.

    Raises:
        RunError: there is none of that name.
        PluginError: it is a plugin's and cannot be used.
    """
    from dse_monitor.checkpoints.layouts import REGISTRY

    if name is None:
        return
    names = REGISTRY.names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        advice = f"did you mean {near[0]}?" if near else "`dse-monitor layouts` lists them"
        raise RunError(f"there is no layout {name!r}; {advice}")
    REGISTRY.load(name)


def check_arch(options: ReadingOptions) -> None:
    """Refuse what timm does not have, or does not build so, before anything is measured.

    Raises:
        RunError: there is none, or it cannot be built.
    """
    if options.arch is None:
        return
    from dse_monitor.checkpoints.named.timm_networks import refusal

    if found := refusal(options.arch, options.arch_option):
        raise RunError(found)
