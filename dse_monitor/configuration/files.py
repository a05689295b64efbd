"""Configuration files: `dse-monitor.toml` beside a run or above it, then the user's own.

An option of `watch` stands under its flag's name in the table ``[watch]``::

    [watch]
    images = "~/data/unlabelled"     # relative paths begin at the file
    device = ["cuda:1"]
    alert = ["webhook:env:CHAT"]
    rules.margin = 0.3
    maps = false
"""

from __future__ import annotations

import difflib
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dse_monitor.configuration.values import value_of
from dse_monitor.errors import ConfigurationError
from dse_monitor.flags.table import Option

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

NAME = "dse-monitor.toml"
TABLE = "watch"
LARGEST = 1 << 20  # bytes; a file above is no configuration. Chosen by us


def files(run: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Those that are there and speak of a run, the nearest first; the user's own is the last."""
    folder = Path(os.path.abspath(run))
    for each in (folder, *folder.parents):
        if (each / NAME).is_file():
            yield each / NAME
    own = user_file(environment)
    if own.is_file():
        yield own


def user_file(environment: Mapping[str, str]) -> Path:
    """The user's own file, whether it is there or not."""
    home = environment.get("XDG_CONFIG_HOME", "")
    # The standard asks for relative paths to be ignored.
    folder = Path(home) if os.path.isabs(home) else Path("~/.config").expanduser()
    return folder / "dse-monitor" / "config.toml"


def read(path: Path, table: Iterable[Option]) -> dict[str, Any]:
    """The options in a file, by name.

    Args:
        path: the file.
        table: the options there are.

    Raises:
        ConfigurationError: it cannot be read, is no TOML, has unknown keys or values of a wrong type, or
            names code to run although somebody else may have written it.
    """
    known = {option.name: option for option in table if not option.how.positional}
    found: dict[str, Any] = {}
    for key, given in _flat(_watch_table(path), set(known)):
        name, given = _without_negation(key.replace("_", "-"), given, known)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else "`dse-monitor watch --help` lists the options"
            raise ConfigurationError(f"{path}: there is no option {key} in [{TABLE}]; {advice}")
        if name in found:
            raise ConfigurationError(f"{path}: {name} stands in [{TABLE}] twice; keep one")
        try:
            found[name] = value_of(known[name], given, path.parent)
        except ValueError as error:
            raise ConfigurationError(f"{path}: {name} in [{TABLE}]: {error}") from None
    _refuse_code_of_others(path, found)
    return found


def _watch_table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ConfigurationError(f"{path}: larger than 1 MiB, which is no configuration; remove it")
        data = tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}); allow it or move it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no TOML: {error}; correct it there") from None
    if others := sorted(set(data) - {TABLE}):
        raise ConfigurationError(
            f"{path}: {others[0]} stands outside of [{TABLE}], the one table that is known; put options "
            f"below a line [{TABLE}]"
        )
    inside = data.get(TABLE, {})
    if not isinstance(inside, dict):
        raise ConfigurationError(f"{path}: {TABLE} is no table; put options below a line [{TABLE}]")
    return inside


def _flat(table: Mapping[str, Any], known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``rules.margin = 0.3`` is a table in a table; flags have such names as well."""
    for key, value in table.items():
        if isinstance(value, dict) and any(name.startswith(f"{prefix}{key}.") for name in known):
            yield from _flat(value, known, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _without_negation(name: str, given: Any, known: Mapping[str, Option]) -> tuple[str, Any]:
    """``no-maps = true`` is ``maps = false``, since the flag is called ``--no-maps``."""
    plain = name.removeprefix("no-")
    if name not in known and plain in known and known[plain].kind is bool and isinstance(given, bool):
        return plain, not given
    return name, given


def _refuse_code_of_others(path: Path, found: Mapping[str, Any]) -> None:
    """A file that another user may write must not decide what is run under this one's name."""
    runs_code = "network" if found.get("network") else ""
    if any(str(sink).startswith("command:") for sink in found.get("alert", ())):
        runs_code = "alert"
    if not runs_code:
        return
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
        raise ConfigurationError(
            f"{path}: {runs_code} names code to run, but another user may write this file; give "
            f"--{runs_code} on the command line, or make the file yours alone (chown, chmod o-w)"
        )
