"""`dse-monitor watch`."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dse_monitor.cli.checkpoints import check_arch, check_layout
from dse_monitor.cli.printing import FAILED
from dse_monitor.errors import ConfigurationError, RunError
from dse_monitor.watch.options import WatchOptions
from dse_monitor.watch.process import become

if TYPE_CHECKING:
    from pathlib import Path

    from dse_monitor.alerts.sinks.delivery import Sink
    from dse_monitor.configuration.sources import Settings


def read(arguments: Sequence[str], prog: str) -> WatchOptions:
    """The options of a command line, completed by what is found elsewhere.

    Raises:
        ConfigurationError: nothing says which images are measured, or a file that says so cannot be used.
        ValueError: an option out of range, or no run.
    """
    from dse_monitor.configuration.sources import in_words, missing_images
    from dse_monitor.flags.parse import parse
    from dse_monitor.flags.table import options

    table = options(WatchOptions)
    defaults = {option.name: option.default for option in table}
    found: list[tuple[str, str]] = []
    files: set[str] = set()

    def fill(typed: Mapping[str, Any]) -> dict[str, Any]:
        if not typed["runs"]:
            raise ValueError("no run to watch; give the folder of a run, or one that holds runs")
        settings = settings_of(typed["runs"], typed)
        if "images" not in typed and "images" not in settings.found:
            raise missing_images(typed["runs"])
        for name, (holds, *_) in settings.found.items():
            if holds.value != defaults[name]:
                found.append((f"{name} {in_words(holds.value)}", holds.source))
                files.add(holds.source)
        found.extend(settings.notes)
        return settings.values()

    try:
        made = parse(WatchOptions, arguments, prog=prog, pairs=True, fill=fill)
    except ValueError as error:
        if not files:
            raise
        where = "; ".join(sorted(files))
        raise ConfigurationError(f"{error} (not all options were typed, others are from {where})") from None
    return dataclasses.replace(made, found=tuple(found))


def settings_of(runs: Sequence[Path], typed: Mapping[str, Any]) -> Settings:
    """What is found for the options that are not typed.

    Raises:
        ConfigurationError: see `sources.settings_for`.
    """
    from dse_monitor.configuration.sources import settings_for
    from dse_monitor.flags.table import options

    @functools.cache
    def survey(folder: Path) -> list[tuple[Path, str]]:
        from dse_monitor.watch.dependencies import Dependencies
        from dse_monitor.watch.files.discovery import Search

        joining = "one" if typed.get("as-one") else "many" if typed.get("as-many") else "rule"
        search = Search.of(Dependencies.real(), joining=joining, chosen=typed.get("run", ()))
        return [(run.folder, run.example) for run in search(folder).runs]

    return settings_for(runs, options(WatchOptions), typed, survey)


def watch(options: WatchOptions) -> int:
    """Become the watcher, or only try where its alerts would go."""
    check_layout(options.config.layout)
    check_arch(options.config)
    sinks = options.sinks  # one that cannot be made is reported here, before anything starts
    if options.test_alert:
        return _try_sinks(options.runs[0], sinks)
    become(options)


def _try_sinks(run: Path, sinks: tuple[Sink, ...]) -> int:
    from dse_monitor.alerts.book import test_alert
    from dse_monitor.alerts.sinks.trial import try_sinks

    if not sinks:
        raise RunError("--test-alert has nothing to try; name sinks with --alert, such as webhook:env:NAME")
    outcome = try_sinks(test_alert(run.resolve().name, now=time.time()), list(sinks))
    for name, reason in outcome.items():
        print(f"✗ {name}: {reason}" if reason else f"✓ {name}: delivered")
    return FAILED if any(outcome.values()) else 0
