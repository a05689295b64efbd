"""`dse-train METHOD --data DIR --out RUN [FLAGS]`, which is `dse-monitor train METHOD ...`."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

# Read when torch loads: waiting threads sleep, since spinning ones starve a watcher on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dse_monitor import __version__
from dse_monitor.errors import DSEError
from dse_monitor.flags.completion import is_completion, write_completion
from dse_monitor.flags.page import block, page, row, sections, show, usage, wrapped
from dse_monitor.flags.parse import parse
from dse_monitor.flags.table import options
from dse_monitor.trainers.methods import METHODS, REGISTRY, load
from dse_monitor.trainers.settings import Settings, TrainingError, TrainOptions

if TYPE_CHECKING:  # it loads torch, which "--help" can do without
    from dse_monitor.trainers.method import Recipe

PROGRAM = "dse-train"
OFFICIAL = "official"


def main(arguments: Sequence[str] | None = None, prog: str = PROGRAM) -> None:
    """Parse the flags of one method and train; exit codes are in `TrainOptions`, errors are one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        if not given:
            print(_first_page(prog), file=sys.stderr)
            raise SystemExit(2)
        show(_first_page(prog))
        raise SystemExit(0)
    if given[0] == "--version":
        show(f"{prog} {__version__}")
        return
    if given[0].startswith("-") and not is_completion(given):
        print(f"error: the method comes first: {prog} METHOD {given[0]} ...", file=sys.stderr)
        raise SystemExit(2)
    if is_completion(given):
        write_completion(completion_tree(), given, prog=prog)
    try:
        _check_method(given[0])
        _train(given[0], given[1:], f"{prog} {given[0]}")
    except (TrainingError, DSEError, ValueError, OSError) as error:
        print(f"error: {error}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
        raise SystemExit(1) from error
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which --help must not load
            raise
        advice = "--accumulate N splits a step into smaller parts, --checkpointing keeps fewer activations"
        print(f"error: {str(error).splitlines()[0]}\n{advice}", file=sys.stderr)
        raise SystemExit(1) from error


def _check_method(name: str) -> None:
    """Name what may have been meant; `load` lists all there are where nothing is near.

    Raises:
        TrainingError: it is almost the name of a method.
    """
    if name in METHODS or name in (names := REGISTRY.names()):
        return
    if near := difflib.get_close_matches(name, names, n=1):
        raise TrainingError(f"there is no method {name!r}; did you mean {near[0]!r}?")


def completion_tree() -> dict[str, type]:
    """What a shell can complete: the methods, each with the flags of a run (recipes would load torch)."""
    return dict.fromkeys(REGISTRY.names(), TrainOptions)


def _first_page(prog: str) -> str:
    return "\n".join(
        [page(TrainOptions, prog=prog), "", *wrapped(f"Methods: {', '.join(REGISTRY.names())}.")]
    )


def _page(title: str, recipe: Recipe, preset: str, prog: str) -> str:
    """Help of one method: the run's flags, then every number of its recipe with this preset's value."""
    run = [option for option in options(TrainOptions) if not option.how.positional]
    presets = " or ".join((OFFICIAL, *recipe.presets))
    about = f"Train {title} with the {preset} preset (--preset {presets})."
    numbers = [row(option) for option in options(type(recipe), recipe)]
    title = f"Recipe, {preset} preset"
    return "\n".join([usage(run, prog=prog), "", *wrapped(about), *sections(run), *block(title, numbers)])


def _train(name: str, flags: list[str], prog: str) -> None:
    from dse_monitor.trainers.engine.trainer import Stopped, train

    method_type = load(name)
    preset, flags = _take_preset(flags)
    recipe = _recipe(method_type.recipe_type, preset)
    command = dataclasses.make_dataclass(
        "Command", [("settings", Settings), ("recipe", type(recipe), dataclasses.field(default=recipe))]
    )
    chosen = parse(
        command, flags, prog=prog, pairs=True, help_page=_page(method_type.__name__, recipe, preset, prog)
    )
    try:
        train(name, method_type, chosen.recipe, chosen.settings)
    except Stopped as stopped:
        raise SystemExit(128 + stopped.number) from None  # as a shell reports a process ended by the signal


def _take_preset(flags: list[str]) -> tuple[str, list[str]]:
    """Remove ``--preset NAME`` or ``--preset=NAME`` from the flags: it decides the defaults of the others."""
    rest, preset, i = [], OFFICIAL, 0
    while i < len(flags):
        if flags[i] == "--preset":
            i += 1
            preset = flags[i] if i < len(flags) else ""
        elif flags[i].startswith("--preset="):
            preset = flags[i].partition("=")[2]
        else:
            rest.append(flags[i])
        i += 1
    return preset, rest


def _recipe(recipe_type: type[Recipe], preset: str) -> Recipe:
    """The recipe that a preset names; what it says are the defaults of the flags."""
    if preset == OFFICIAL:
        return recipe_type()  # pyright: ignore[reportCallIssue]  a method's own has defaults
    if preset not in recipe_type.presets:
        expected = " or ".join((OFFICIAL, *recipe_type.presets))
        raise TrainingError(f"--preset {preset!r}: expected {expected}")
    return getattr(recipe_type, preset)()
