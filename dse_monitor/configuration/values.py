"""A value of a configuration file -> the value of an option: types are checked, nothing is guessed."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from dse_monitor.flags.table import Option

_CALLED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def value_of(option: Option, given: Any, base: Path) -> Any:
    """What an option becomes.

    Args:
        option: the option.
        given: what the file says: a TOML value.
        base: the file's folder, which relative paths begin at.

    Raises:
        ValueError: it is no value of that option; the text says what was expected.
    """
    if option.how.read is not None:
        if isinstance(given, list) and given and all(type(each) is int for each in given):
            return tuple(given)
        if isinstance(given, bool) or not isinstance(given, (str, int)):
            raise ValueError(f"expected text or a whole number, found {_shown(given)}")
        return option.how.read(str(given))
    value = _converted(option.kind, given, base)
    if option.name == "network":
        file = base / value.rpartition(":")[0]
        return f"{file}:{value.rpartition(':')[2]}" if file.is_file() else value
    return value


def _converted(kind: Any, given: Any, base: Path) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for each in inner:
            if each is not type(None):
                try:
                    return _converted(each, given, base)
                except ValueError:
                    continue
    elif origin is Literal:
        if given in inner and isinstance(given, str):
            return given
    elif origin is tuple:  # of any length; a single value is a list of one
        return tuple(_converted(inner[0], each, base) for each in (given if _is_list(given) else [given]))
    elif kind is Path and isinstance(given, str) and given:
        return base / Path(given).expanduser()
    elif kind is float and type(given) in (int, float):
        return float(given)
    elif kind in (bool, int, str) and type(given) is kind:
        return given
    raise ValueError(f"expected {_in_words(kind)}, found {_shown(given)}")


def _is_list(given: Any) -> bool:
    return isinstance(given, list)


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(each) for each in inner if each is not type(None))
    if origin is Literal:
        return " or ".join(f'"{each}"' for each in inner)
    if origin is tuple:
        return f"{_in_words(inner[0])} or a list of such"
    return _CALLED[kind]


def _shown(given: Any) -> str:
    return {True: "true", False: "false"}[given] if isinstance(given, bool) else repr(given)
