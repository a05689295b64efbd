"""The command line: which commands there are, and their help. Each is a dataclass of options and a function.

The functions import what they need, so `dse-monitor --help` answers without loading torch. Exit codes: 0
done, 1 nothing to show, 2 an error that one line explains, 3 a checkpoint could not be measured (or a test
alert not be delivered), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dse_monitor import __version__
from dse_monitor.cli import alerts, checkpoints, config, demo, images, probe, results, runs, score, watch
from dse_monitor.flags.page import HELP, block
from dse_monitor.flags.table import described
from dse_monitor.trainers.settings import TrainOptions
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.process import ended

PROGRAM = "dse-monitor"
VERSION = ("--version", "Print the version and end.")
COMPLETION = (
    "--tyro-write-completion SHELL FILE",
    "Write what lets bash, zsh, tcsh or fish complete commands and flags.",
)


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        options: a dataclass, whose documentation is its help.
        run: what runs; returns the exit code.
        read: makes the options from a command line and the command's name; `flags.parse` if None.
    """

    options: type
    run: Callable[[Any], int]
    read: Callable[[Sequence[str], str], Any] | None = None


COMMANDS = {
    "watch": Command(WatchOptions, watch.watch, watch.read),
    "config": Command(config.ConfigOptions, config.config),
    "runs": Command(runs.RunsOptions, runs.runs),
    "score": Command(score.ScoreOptions, score.score),
    "best": Command(results.BestOptions, results.best),
    "status": Command(results.StatusOptions, results.status),
    "silence": Command(alerts.SilenceOptions, alerts.silence),
    "replay": Command(alerts.ReplayOptions, alerts.replay),
    "export": Command(results.ExportOptions, results.export),
    "probe": Command(probe.ProbeOptions, probe.probe),
    "inspect": Command(checkpoints.InspectOptions, checkpoints.inspect),
    "layouts": Command(checkpoints.LayoutsOptions, checkpoints.layouts),
    "scenes": Command(images.ScenesOptions, images.scenes),
    "demo": Command(demo.DemoOptions, demo.demo),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `dse-monitor`: errors of this project become one line on stderr and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:  # closed by whoever started this (`>&-`)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if given[:1] == ["train"]:
        from dse_monitor.trainers.command_line import main as train

        train(given[1:], f"{PROGRAM} train")
        return
    sys.exit(ended(lambda: _run(given)))


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(page(), file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    name, *rest = given
    if name == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    from dse_monitor.flags.parse import parse, unknown

    if name.startswith("--tyro-"):
        _write_completion(given)
    if name not in COMMANDS:
        what = "flag" if name.startswith("-") else "command"
        unknown(
            name,
            (*COMMANDS, "train", "--help", "--version"),
            prog=PROGRAM,
            what=what,
            where=f"{PROGRAM} --help",
        )
    command = COMMANDS[name]
    prog = f"{PROGRAM} {name}"
    return command.run(command.read(rest, prog) if command.read else parse(command.options, rest, prog=prog))


def page() -> str:
    """What there is, a line for each command."""
    options = {name: command.options for name, command in COMMANDS.items()} | {"train": TrainOptions}
    rows = [(name, described(of)[0][0]) for name, of in options.items()]
    lines = [
        f"Usage: {PROGRAM} COMMAND ...",
        "",
        "Watch self-supervised training for dense degradation (DSE), without labels.",
        *block("Commands", rows, margin=12),
        *block("Flags", [HELP, VERSION, COMPLETION], margin=16),
        "",
        f"`{PROGRAM} COMMAND --help` shows the flags of a command, with examples.",
    ]
    return "\n".join(lines)


def _write_completion(given: list[str]) -> None:
    from dse_monitor.flags.completion import write_completion
    from dse_monitor.trainers.command_line import completion_tree

    tree = {name: command.options for name, command in COMMANDS.items()}
    write_completion({**tree, "train": completion_tree()}, given, prog=PROGRAM)
