"""A command line -> the dataclass whose fields are its flags. tyro reads the values; mistakes end with 2."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, make_dataclass
from typing import Annotated, Any, NoReturn, TypeVar

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, HelptextFromCommentsOff, Positional
from tyro.constructors import PrimitiveConstructorSpec

from dse_monitor.flags.page import page, show
from dse_monitor.flags.table import Option, kinds, options

T = TypeVar("T")
Values = Mapping[str, Any]  # of options, by their names

COMPLETION = ("--tyro-write-completion", "--tyro-print-completion")  # followed by a shell (and a file)


def parse(
    of: type[T],
    arguments: Sequence[str],
    *,
    prog: str,
    default: T | None = None,
    pairs: bool = False,
    help_page: str | None = None,
    fill: Callable[[Values], Values] | None = None,
) -> T:
    """The options that a command line gives.

    Args:
        of: the dataclass.
        arguments: the command line after the command's name.
        prog: the command, for messages.
        default: an instance whose values are the defaults, instead of the class's own.
        pairs: whether each switch can be set and unset (``--x``, ``--no-x``), since presets differ in them.
        help_page: what ``--help`` prints, if it is not `page` of the class.
        fill: called with the options that the command line gives; what it returns takes the place of the
            defaults of others.

    Raises:
        SystemExit: help was printed (code 0), or a flag is unknown, missing or has no such value (code 2).
        ValueError: a value is empty, or the class refuses it.
    """
    table = options(of, default)
    flags = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    if {"-h", "--help"} & set(flags):
        show(page(of, prog=prog) if help_page is None else help_page)
        raise SystemExit(0)
    _refuse_unknown(flags, known(table, pairs=pairs), prog)
    if "" in arguments:  # as a path it would be the current folder
        before = arguments[list(arguments).index("") - 1] if arguments[0] else ""
        what = before if before.startswith("--") else "an argument"
        raise ValueError(f"{what} is empty; was a variable of the shell not set?")
    chosen = tyro.cli(flat(table), args=arguments, prog=prog, config=markers(pairs=pairs))
    values = {option.path: getattr(chosen, "__".join(option.path)) for option in table}
    if fill is not None:
        typed = {option.name: values[option.path] for option in table if _is_typed(option, flags)}
        found = {**fill(typed), **typed}
        values |= {option.path: found[option.name] for option in table if option.name in found}
    return _made(of, values)


def markers(*, pairs: bool = False) -> tuple[Any, ...]:
    """How tyro reads the class that `flat` makes."""
    single = () if pairs else (FlagCreatePairsOff,)
    return (*single, DisallowNone, HelptextFromCommentsOff)


def known(table: Iterable[Option], *, pairs: bool = False) -> list[str]:
    """Every flag that is accepted."""
    found: list[str] = []
    for option in table:
        if not option.how.positional:
            both = [f"--{option.name}", f"--no-{option.name}"] if pairs and option.kind is bool else []
            found += dict.fromkeys([option.flag, *both, *option.how.aliases])
    return found


def flat(table: Sequence[Option]) -> type:
    """A dataclass with one field for each option, annotated for tyro; required ones first, as it must be."""
    made = []
    for option in sorted(table, key=lambda option: not option.required):
        about = tyro.conf.arg(
            name=option.name,
            metavar=option.value or None,
            help=option.doc,
            aliases=option.how.aliases or None,
        )
        extras = ((Positional,) if option.how.positional else ()) + _reading(option)
        kind = Annotated[(option.kind, about, *extras)]
        made.append(
            ("__".join(option.path), kind, field(default=option.default) if not option.required else field())
        )
    return make_dataclass("Options", made, kw_only=True)


def _reading(option: Option) -> tuple[Any, ...]:
    """How tyro makes the value of an option that reads its word itself."""
    read = option.how.read
    if read is None:
        return ()
    return (
        PrimitiveConstructorSpec(
            nargs=1,
            metavar=option.value,
            instance_from_str=lambda words: read(words[0]),
            is_instance=lambda value: True,
            str_from_instance=lambda value: [str(value)],
        ),
    )


def unknown(word: str, known: Iterable[str], *, prog: str, what: str, where: str) -> NoReturn:
    """End with code 2 and one line that names what may have been meant.

    Args:
        word: what was typed.
        known: what could have been.
        prog: the command, for the message.
        what: what it was taken for: ``flag`` or ``command``.
        where: what lists those there are.
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    advice = f"did you mean {near[0]}?" if near else f"{where} lists them"
    print(f"{prog}: there is no {what} {word}; {advice}", file=sys.stderr)
    raise SystemExit(2)


def _refuse_unknown(flags: Iterable[str], known: Sequence[str], prog: str) -> None:
    for given in flags:
        word = given.partition("=")[0].replace("_", "-")
        if word.startswith("--") and word not in known and word not in COMPLETION:
            unknown(word, known, prog=prog, what="flag", where=f"{prog} --help")


def _is_typed(option: Option, flags: Iterable[str]) -> bool:
    """Whether the command line gives an option; positional ones always count."""
    spelled = {f"--{option.name}", f"--no-{option.name}", *option.how.aliases}
    return option.how.positional or any(word.partition("=")[0].replace("_", "-") in spelled for word in flags)


def _made(of: type[T], chosen: Mapping[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> T:
    """The dataclass, and those in it, from the values of the flat one."""
    values = {}
    for name, kind in kinds(of).items():
        here = (*path, name)
        inside = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        values[name] = _made(kind, chosen, here) if inside else chosen[here]
    return of(**values)
