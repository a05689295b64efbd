"""Help that is read: what a command does, two examples, what must be given, then the flags by use."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from dse_monitor.flags.table import Option, described, options

MARGIN = 26  # columns of the left half; longer flags get a line of their own
WIDEST = 110  # columns; longer lines are hard to follow
HELP = ("-h, --help", "Show this page and end.")


def page(of: type, *, prog: str) -> str:
    """The help of the command whose options are the fields of `of`."""
    table = options(of)
    paragraphs, examples = described(of)
    lines = [usage(table, prog=prog)]
    for paragraph in paragraphs:
        lines += ["", *wrapped(paragraph)]
    if examples:
        lines += ["", "Examples:", *(f"  {line}" for line in examples)]
    return "\n".join([*lines, *sections(table)])


def usage(table: Sequence[Option], *, prog: str) -> str:
    """What must be given, in one line."""
    given = [_positional(option) for option in table if option.how.positional]
    given += [_invocation(option) for option in table if option.required and not option.how.positional]
    optional = any(not option.required and not option.how.positional for option in table)
    return " ".join(["Usage:", prog, *given, *(["[FLAGS]"] if optional else [])])


def sections(table: Sequence[Option]) -> list[str]:
    """Arguments, basic and advanced flags as blocks of lines after an empty one; required flags first."""
    flags = sorted((o for o in table if not o.how.positional), key=lambda option: not option.required)
    basic, advanced = ([o for o in flags if o.how.advanced is wanted] for wanted in (False, True))
    blocks = {
        "Arguments": [row(option) for option in table if option.how.positional],
        "Basic flags" if advanced else "Flags": [*map(row, basic), HELP],
        "Advanced flags": list(map(row, advanced)),
    }
    return [line for title, rows in blocks.items() if rows for line in block(title, rows)]


def row(option: Option) -> tuple[str, str]:
    """An option as it is typed, and what it does."""
    text = option.doc
    if option.kind is bool and option.default is True:
        text = f"Do not {text[0].lower() if text[1].islower() else text[0]}{text[1:]}"
    said = "required" if option.required and not option.how.positional else _default(option)
    left = _positional(option) if option.how.positional else _invocation(option)
    return left, f"{text} ({said})" if said else text


def block(title: str, rows: Iterable[tuple[str, str]], margin: int = MARGIN) -> list[str]:
    """A title and rows of two columns."""
    lines = ["", f"{title}:"]
    for left, right in rows:
        first, *rest = wrapped(right, margin) or [""]
        start = f"  {left}".ljust(margin)
        lines += [start + first] if len(left) + 4 <= margin else [start.rstrip(), " " * margin + first]
        lines += [" " * margin + line for line in rest]
    return lines


def wrapped(text: str, margin: int = 0) -> list[str]:
    """Lines that fit the terminal beside a margin."""
    width = max(min(shutil.get_terminal_size().columns, WIDEST) - margin - 1, 20)
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _positional(option: Option) -> str:
    name = option.how.metavar + ("..." if option.several else "")
    return name if option.required else f"[{name}]"


def _invocation(option: Option) -> str:
    value = option.value + (" ..." if option.several else "")
    return f"{option.flag} {value}".strip()


def _default(option: Option) -> str:
    """The default in words; empty where there is nothing to say."""
    value = option.default
    if option.how.default:
        return f"default: {option.how.default}"
    if option.required or option.kind is bool or value is None or value in ("", ()):
        return ""
    values = value if isinstance(value, tuple) else (value,)
    return "default: " + " ".join(_written(each) for each in values)


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def show(text: str) -> None:
    """Print a page; a reader that left (``| head``) is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
