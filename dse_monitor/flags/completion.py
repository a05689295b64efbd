"""Completion scripts for shells: tyro writes them from the commands and their flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from typing import Annotated, Any, NoReturn, Union

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes

from dse_monitor.flags.parse import COMPLETION, flat, markers
from dse_monitor.flags.table import described, options

Tree = Mapping[str, "type | Tree"]


def is_completion(arguments: Sequence[str]) -> bool:
    """Whether a completion script is asked for."""
    return arguments[0].replace("_", "-") in COMPLETION


def write_completion(commands: Tree, arguments: Sequence[str], *, prog: str) -> NoReturn:
    """Write the script as the arguments say: ``--tyro-write-completion SHELL FILE``, - for standard output.

    Args:
        commands: the options of each command, or its own commands, by name.
        arguments: the command line.
        prog: the program to complete.

    Raises:
        SystemExit: it was written.
        ValueError: the arguments are incomplete.
    """
    shells = ("bash", "zsh", "tcsh", "fish")
    if len(arguments) < 2 + (arguments[0] == COMPLETION[0]) or arguments[1] not in shells:
        raise ValueError(
            f"{arguments[0]} needs a shell ({', '.join(shells)}) and a file, - for standard output"
        )
    config = (*markers(), OmitArgPrefixes, OmitSubcommandPrefixes)
    tyro.cli(_union(commands), args=list(arguments), prog=prog, config=config)
    raise SystemExit(0)


def _union(commands: Tree) -> Any:
    made = []
    for name, inside in commands.items():
        if isinstance(inside, Mapping):
            kind, about = make_dataclass("Commands", [("command", _union(inside))]), ""
        else:
            kind, about = flat(options(inside)), described(inside)[0][0]
        made.append(Annotated[(kind, tyro.conf.subcommand(name, description=about))])
    return Union[tuple(made)]  # noqa: UP007
