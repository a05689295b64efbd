"""The flags of a dataclass, in a table: what help prints, the parser accepts and tests compare."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from dse_monitor.flags import Flag

_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
_SECTION = re.compile(r"(Attributes|Examples|Raises|Args|Returns):")
_ROLE = re.compile(r":\w+:`")  # of Sphinx
_ENTRY = re.compile(r"(\w+): (.*)")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One flag or positional argument.

    Attributes:
        path: names of the fields that lead to it, from the class on the command line inwards.
        kind: its type, without what is annotated.
        default: its default; ``dataclasses.MISSING`` if it is required.
        doc: what it does, in a sentence.
        how: what else is known of it.
        name: the flag without dashes.
    """

    path: tuple[str, ...]
    kind: Any
    default: Any
    doc: str
    how: Flag
    name: str

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is MISSING

    @property
    def flag(self) -> str:
        """As it is typed, without its value: ``--seed``; ``--no-maps`` of a switch that is on."""
        if self.how.positional:
            return self.how.metavar
        return f"--no-{self.name}" if self.default is True else f"--{self.name}"

    @property
    def value(self) -> str:
        """What stands for its value in help; empty for a switch."""
        return "" if self.kind is bool else self.how.metavar or _metavar(self.kind)

    @property
    def several(self) -> bool:
        """Whether it takes any number of values."""
        return self.how.read is None and get_args(self.kind)[1:] == (...,)


def options(of: type, default: Any = None) -> list[Option]:
    """The options of a dataclass and of the dataclasses in it, in the order of their fields.

    Args:
        of: the dataclass.
        default: an instance whose values are the defaults, instead of the class's own.
    """
    return list(_options(of, default, (), "", Flag()))


def _options(of: type, default: Any, path: tuple[str, ...], prefix: str, above: Flag) -> Iterator[Option]:
    hints = get_type_hints(of, include_extras=True)
    docs, elsewhere = documented(of), dict(above.elsewhere)
    for field in dataclasses.fields(of):
        kind, how = _unpacked(hints[field.name])
        if how.hidden:
            continue
        how = dataclasses.replace(how, advanced=how.advanced or above.advanced)
        value = _default(field) if default is None else getattr(default, field.name)
        here = (*path, field.name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            inner = f"{prefix}{how.name}." if how.name else prefix
            instance = None if value is MISSING else value
            yield from _options(kind, instance, here, inner, how)
            continue
        if value is MISSING and field.name in elsewhere:
            kind, value = kind | None, None
            how = dataclasses.replace(how, default=elsewhere[field.name])
        name = prefix + (how.name or field.name.replace("_", "-"))
        yield Option(path=here, kind=kind, default=value, doc=docs.get(field.name, ""), how=how, name=name)


def kinds(of: type) -> dict[str, Any]:
    """The types of the fields that are on the command line, without what is annotated."""
    hints = get_type_hints(of, include_extras=True)
    read = {field.name: _unpacked(hints[field.name]) for field in dataclasses.fields(of)}
    return {name: kind for name, (kind, how) in read.items() if not how.hidden}


def _unpacked(hint: Any) -> tuple[Any, Flag]:
    """A type and the `Flag` annotated to it."""
    if get_origin(hint) is not Annotated:
        return hint, Flag()
    kind, *extras = get_args(hint)
    return kind, next((extra for extra in extras if isinstance(extra, Flag)), Flag())


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _metavar(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(_metavar(each) for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        each = get_args(kind)
        return _metavar(each[0]) if each[1:] == (...,) else " ".join(map(_metavar, each))
    return _METAVARS[kind]


def described(of: type) -> tuple[list[str], list[str]]:
    """The paragraphs of a class's docstring before its sections, and the lines under ``Examples:``."""
    text = inspect.cleandoc(of.__doc__ or "")
    head = _SECTION.split(text)[0].strip()
    return [" ".join(paragraph.split()) for paragraph in head.split("\n\n")], _section(text, "Examples")


@cache
def documented(of: type) -> dict[str, str]:
    """What each field does: its docstring, or its entry under ``Attributes:``, also of parent classes."""
    docs: dict[str, str] = {}
    for each in reversed(of.__mro__):
        if dataclasses.is_dataclass(each):
            docs |= _entries(_section(inspect.cleandoc(each.__doc__ or ""), "Attributes"))
            docs |= _field_docstrings(each)
    return {name: _ROLE.sub("`", text).replace("``", "`") for name, text in docs.items()}


def _section(text: str, name: str) -> list[str]:
    """The lines of a section of a docstring, without their common margin."""
    found = re.search(rf"^{name}:\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
    return textwrap.dedent(found[1]).strip().splitlines() if found else []


def _entries(lines: list[str]) -> dict[str, str]:
    """``name: text`` entries, whose further lines are indented."""
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if entry := _ENTRY.fullmatch(line):
            name, found[entry[1]] = entry.groups()
        elif name:
            found[name] += " " + line.strip()
    return {name: text[:1].upper() + text[1:] for name, text in found.items()}


def _field_docstrings(of: type) -> dict[str, str]:
    """The strings that follow fields in the class's source."""
    try:
        source = inspect.getsource(of)
    except (OSError, TypeError):  # made at run time
        return {}
    [definition] = ast.parse(textwrap.dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = " ".join(text.value.value.split())
    return found
