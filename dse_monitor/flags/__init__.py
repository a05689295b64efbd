"""Flags made from the fields of a dataclass: each is written once, where the value is used.

A field's name, type, default and documentation (its docstring, or its entry under ``Attributes:``) become the
flag; what else help needs stands in a `Flag` beside the type::

    poll_seconds: Annotated[float | None, Flag(metavar="SECONDS", advanced=True)] = None

This module uses the standard library alone, since the options of a watcher live in a process that keeps
neither a parser nor torch. `table` reads such a class, `page` prints its help and `parse` fills it from a
command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What help and the parser need to know of a field beside its type, default and documentation.

    Attributes:
        name: the flag without its dashes, where it differs from the field's name. Of a field that is itself a
            dataclass: the prefix of its flags, which stand without one otherwise.
        metavar: what stands for the value in help; made from the type if empty.
        default: the default in words, where the value (None, for instance) does not say it.
        advanced: whether help lists it among the advanced flags; of a dataclass, all of its flags.
        positional: whether it is given by position.
        hidden: whether it is not on the command line at all.
        aliases: other spellings, with their dashes; accepted, but not shown in help.
        read: makes the value of one word, where its type alone does not say how; a ValueError says what is
            wrong with the word.
        elsewhere: of a dataclass: those of its required fields that may be left out, because a value is found
            elsewhere, and where, in words. The command then gives `parse` what finds it.
    """

    name: str = ""
    metavar: str = ""
    default: str = ""
    advanced: bool = False
    positional: bool = False
    hidden: bool = False
    aliases: tuple[str, ...] = ()
    read: Callable[[str], Any] | None = None
    elsewhere: tuple[tuple[str, str], ...] = ()


ADVANCED = Flag(advanced=True)
