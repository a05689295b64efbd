"""``dse-train METHOD --data DIR --out RUN [flags]``, which is ``python -m dse_monitor train METHOD ...``."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

# Read when torch loads: waiting threads sleep, since spinning ones starve a watcher on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dse_monitor.errors import DSEError
from dse_monitor.trainers.methods import REGISTRY, load
from dse_monitor.trainers.settings import Settings, TrainingError

if TYPE_CHECKING:  # it loads torch, which "--help" can do without
    from dse_monitor.trainers.method import Recipe

OFFICIAL = "official"
USAGE = """usage: dse-train METHOD --data DIR --out RUN [--preset NAME] [flags]

Trains one of: {methods}.

  --data DIR        a folder of images, or 'scenes' for built-in ones
  --preset NAME     'official' (the authors' numbers, default) or 'tiny' (64-px images, a minute or so on CPU)
  METHOD --help     its presets and every flag: the run's, then each number of the recipe with its default

Several GPUs: torchrun --nproc-per-node N -m dse_monitor train METHOD ...

Exit codes: 0 trained to the end, 1 an error, 2 wrong flags, 143 stopped by SIGTERM and 130 by Ctrl-C, both
after saving: the same command with --resume goes on from there."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the flags of one method and train; exit codes are in :data:`USAGE`, errors are one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE.format(methods=", ".join(REGISTRY.names())))
        raise SystemExit(0 if given else 2)
    try:
        _train(given[0], given[1:])
    except (TrainingError, DSEError, ValueError, OSError) as error:
        print(f"error: {error}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
        raise SystemExit(1) from error
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which --help must not load
            raise
        advice = "--accumulate N splits a step into smaller parts, --checkpointing keeps fewer activations"
        print(f"error: {str(error).splitlines()[0]}\n{advice}", file=sys.stderr)
        raise SystemExit(1) from error


def _train(name: str, flags: list[str]) -> None:
    import tyro

    from dse_monitor.trainers.engine.trainer import Stopped, train

    method_type = load(name)
    preset, flags = _take_preset(flags)
    recipe = _recipe(method_type.recipe_type, preset)
    presets = " or ".join((OFFICIAL, *recipe.presets))
    command = dataclasses.make_dataclass(
        "Command", [("settings", Settings), ("recipe", type(recipe), dataclasses.field(default=recipe))]
    )
    chosen = tyro.cli(
        command,
        args=flags,
        prog=f"dse-train {name}",
        description=f"Train {method_type.__name__} with the {preset} preset (--preset {presets}).",
        config=(tyro.conf.OmitArgPrefixes,),
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
