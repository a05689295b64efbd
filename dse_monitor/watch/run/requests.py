"""What people ask of a watched run while its watcher works.

Only the holder of the run's lock writes its ledger, so a wish waits in a small file of its own until a
watcher (the one at work, or the next) takes it into the ledger. A watcher killed in between takes it twice,
which changes nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dse_monitor import atomic
from dse_monitor.alerts.silences import silence_fact
from dse_monitor.errors import OutputError

FOLDER = "requests"
LONGEST = 4096  # bytes of a request; chosen by us, a silence needs about a hundred


def ask_silence(home: Path, rule: str, *, now: float, seconds: float | None) -> Path:
    """Ask that no alerts of a rule are given for a time.

    Args:
        home: the run's output folder.
        rule: a rule's name, or ``all``.
        now: seconds since 1970.
        seconds: how long; None until the alert is resolved, 0 to take back what was asked before.

    Returns:
        The file left.

    Raises:
        ValueError: there is no such rule, or the time is negative.
        OutputError: the folder cannot be written.
    """
    text = json.dumps(silence_fact(rule, now=now, seconds=seconds))
    # Sorted by name they are in the order they were asked.
    path = Path(home) / FOLDER / f"{int(now * 1e6):020d}-{uuid.uuid4().hex[:6]}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        atomic.write_text(path, text + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); was this run watched?") from error
    return path


def waiting(home: Path) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """The requests not taken yet, oldest first: file, and data of a ``silence`` fact.

    None stands for a file that is not a request. The caller removes each file once it is dealt with.
    """
    folder = Path(home) / FOLDER
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
    except OSError:  # nobody ever asked for anything
        return
    for path in paths:
        yield path, _read(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(LONGEST))
        since, until = float(data["since"]), data["until"]
        return silence_fact(data["rule"], now=since, seconds=None if until is None else float(until) - since)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
