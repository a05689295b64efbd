"""What commands share: the exit code of a failure, JSON, numbers in columns, progress on a terminal."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator

FAILED = 3  # exit code where a checkpoint could not be measured, or a test alert not be delivered


def print_json(data: object) -> None:
    """One JSON value on a line of its own, at once."""
    print(json.dumps(data, allow_nan=False), flush=True)


def number(value: float, missing: str = "    -") -> str:
    """Three decimals, or what stands for a value that is not there."""
    return f"{value:.3f}" if math.isfinite(value) else missing


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error while something runs; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    if not console.is_terminal:  # older versions of rich would end even an unseen bar with an empty line
        yield lambda stage, done, total: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title)

        def report(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{title}  {stage}", completed=done, total=total)

        yield report
