"""`dse-monitor config`: what `watch` would go by, and where that stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dse_monitor.cli.printing import print_json
from dse_monitor.cli.watch import settings_of
from dse_monitor.flags import Flag
from dse_monitor.watch.options import WatchOptions

if TYPE_CHECKING:
    from dse_monitor.configuration.sources import Setting
    from dse_monitor.flags.table import Option


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Show what `watch RUN` goes by, and where each value stands.

    Nothing is written. What counts for an option: the command line of `watch`, then what RUN was watched
    with before, dse-monitor.toml beside RUN or above it, the user's own file, and for the images the variable
    DSE_MONITOR_IMAGES and the data path that the training recorded.

    Examples:
        dse-monitor config runs/exp1
        dse-monitor config --json
    """

    run: Annotated[Path, Flag(positional=True, metavar="RUN", default="the current folder")] = Path()
    """Folder of a run, or one that holds runs."""
    json: bool = False
    """Print one JSON object for each option, defaults too."""


def config(options: ConfigOptions) -> int:
    """Print a line for each option that is not the default; code 1 when nothing names the images."""
    from dse_monitor.configuration.sources import in_words, missing_images
    from dse_monitor.flags.table import options as table_of

    settings = settings_of([options.run], {})
    table = [option for option in table_of(WatchOptions) if not option.how.positional]
    if options.json:
        for option in table:
            print_json(_object(option, settings.found.get(option.name, [])))
    else:
        rows = [
            (option.name, in_words(found[0].value), found)
            for option in table
            if (found := settings.found.get(option.name)) and _matters(option, found)
        ]
        width = max((len(name) for name, _, _ in rows), default=0)
        for name, value, (holds, *others) in rows:
            print(f"{name:<{width}}  {value}")
            print(f"{'':<{width}}    from {holds.source}")
            for other in others:
                print(f"{'':<{width}}    not {in_words(other.value)}, from {other.source}")
        for what, why in settings.notes:
            print(f"▲ {what}: left out of {why}")
        print("The other options have their defaults; --json lists them." if rows else "All are defaults.")
    if "images" in settings.found:
        return 0
    if not options.json:
        print(f"▲ {missing_images([options.run])}")
    return 1


def _matters(option: Option, found: list[Setting]) -> bool:
    """Whether a value is worth a line: it is not the default, or stands before another one."""
    return any(setting.value != option.default for setting in found)


def _object(option: Option, found: list[Setting]) -> dict[str, Any]:
    value, source = (found[0].value, found[0].source) if found else (option.default, "default")
    others = [{"value": _plain(other.value), "from": other.source} for other in found[1:]]
    return {"option": option.name, "value": _plain(value), "from": source, "others": others}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
