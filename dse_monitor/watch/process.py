"""The watcher as a process of its own: `python -m dse_monitor.watch.process JSON`.

The command line takes 15 MB: flags are made from types, documentation is parsed, a terminal is asked for its
colours. A watcher lives for weeks beside a training and needs none of that any more, so the command line
checks what is asked and then becomes this process: the process id, the terminal and the open streams stay.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from dse_monitor.errors import DSEError

if TYPE_CHECKING:
    from dse_monitor.watch.options import WatchOptions


def become(options: WatchOptions) -> NoReturn:
    """Turn this process into a watcher; never returns."""
    command = [*python_module("dse_monitor.watch.process"), json.dumps(options.to_json())]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command)


def python_module(name: str) -> list[str]:
    """The command that runs a module in an interpreter like this one.

    ``-m`` looks for modules in the current folder first; where this process does not, that one must not
    either, as people stand in a training's folder with files named like modules.
    """
    here = sys.path[0] in ("", os.getcwd())
    safe = [] if here or sys.version_info < (3, 11) else ["-P"]
    return [sys.executable, *safe, "-m", name]


def ended(command: Callable[[], int | None]) -> int:
    """The exit code of a command; our own errors become one line on standard error and code 2."""
    try:
        return command() or 0
    except (DSEError, ValueError) as error:  # a ValueError: an option out of range
        print(f"dse-monitor: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `dse-monitor ... | head`: the reader left, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a checkpoint that is gone, a disk that does not answer
        file = f"{error.filename}: " if error.filename else ""
        print(f"dse-monitor: {file}{error.strerror or error}", file=sys.stderr)
        return 2


def main() -> int:
    """Watch as the order on the command line says."""
    from dse_monitor.watch.console import Console
    from dse_monitor.watch.monitor import watch
    from dse_monitor.watch.options import WatchOptions

    options = WatchOptions.from_json(json.loads(sys.argv[1]))
    return watch(options, Console(form=options.form, several=len(options.runs) > 1))


if __name__ == "__main__":
    sys.exit(ended(main))
