"""Completion scripts for shells: tyro writes them from the commands and their flags."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from pathlib import Path
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
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(_union(commands), args=[COMPLETION[1], arguments[1]], prog=prog, config=config)
    text = script.getvalue()
    if arguments[1] == "bash":
        text = _with_paths(text)
    if arguments[0].replace("_", "-") == COMPLETION[1] or arguments[2] == "-":
        sys.stdout.write(text)
    else:
        Path(arguments[2]).write_text(text, encoding="utf-8")
    raise SystemExit(0)


def _with_paths(script: str) -> str:
    """Where no flag or command fits, bash completes paths: tyro's script answers with one empty word."""
    nothing = '  if [[ -z "$completions" ]]; then\n    COMPREPLY=()\n    return 0\n  fi\n\n'
    parsing = "  # Parse completions and build COMPREPLY array.\n"
    return script.replace(parsing, nothing + parsing).replace("complete -F ", "complete -o default -F ")


def _union(commands: Tree) -> Any:
    made = []
    for name, inside in commands.items():
        if isinstance(inside, Mapping):
            kind, about = make_dataclass("Commands", [("command", _union(inside))]), ""
        else:
            table = [option for option in options(inside) if not option.how.positional]  # shells do paths
            kind, about = flat(table), described(inside)[0][0]
        made.append(Annotated[(kind, tyro.conf.subcommand(name, description=about))])
    return Union[tuple(made)]  # noqa: UP007
