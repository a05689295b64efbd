"""`dse-monitor silence` and `replay`: fewer alerts, and those there would have been."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dse_monitor.alerts.parameters import Rules
from dse_monitor.cli.printing import print_json
from dse_monitor.errors import RunError
from dse_monitor.flags import Flag
from dse_monitor.reader import output_folder


@dataclass(frozen=True, kw_only=True)
class SilenceOptions:
    """Mute the alerts of a watched run.

    What is still true when the silence ends is reported then. A watcher at work applies it at its next scan.

    Examples:
        dse-monitor silence runs/exp1 --during 6h
        dse-monitor silence runs/exp1 --rule degradation --off
    """

    run: Annotated[Path, Flag(positional=True, metavar="RUN")]
    """A watched run, or its output folder."""
    rule: Annotated[
        Literal["all", "degradation", "non-finite", "failures", "stale", "plateau"], Flag(metavar="RULE")
    ] = "all"
    """Which alerts: all, degradation, non-finite, failures, stale or plateau."""
    during: Annotated[str | None, Flag(metavar="TIME", default="until the alert is resolved")] = None
    """How long: 30min, 6h, 2d."""
    off: bool = False
    """Take back what was muted before."""


def silence(options: SilenceOptions) -> int:
    """Leave the request where the watcher finds it."""
    from dse_monitor.watch.options import span_seconds
    from dse_monitor.watch.run.requests import ask_silence

    seconds = 0.0 if options.off else None
    if options.during is not None:
        if options.off:
            raise RunError("--off takes a silence back, so it goes without --during")
        seconds = span_seconds(options.during)
        if not seconds:
            raise RunError(f"--during {options.during!r} is not a duration; expected such as 30min, 6h or 2d")
    ask_silence(output_folder(options.run), options.rule, now=time.time(), seconds=seconds)
    alerts = "alerts" if options.rule == "all" else f"{options.rule} alerts"
    if options.off:
        length = "will be reported again"
    else:
        length = f"are silent {f'for {options.during}' if options.during else 'until resolved'}"
    print(f"{options.run}: {alerts} {length}")
    return 0


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Say what the alert rules would have reported on a run, and when.

    Examples:
        dse-monitor replay runs/exp1
        dse-monitor replay curve.csv --rules.margin 0.1
    """

    path: Annotated[Path, Flag(positional=True, metavar="RUN|CSV")]
    """A watched run, or a CSV file with columns epoch,dse[,dse_se]."""
    json: bool = False
    """Print one JSON object."""
    rules: Annotated[Rules, Flag(name="rules", advanced=True)] = Rules()  # noqa: RUF009  frozen
    """When to alert."""


def replay(options: ReplayOptions) -> int:
    """Run the rules again over what was recorded."""
    from dse_monitor.alerts.replay import replay as run_again

    result = run_again(options.path, options.rules)
    print_json(result.to_json()) if options.json else print(result)
    return 0
