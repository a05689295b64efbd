"""Which folders are runs? `watch runs/` follows each run below it, also those that begin later.

A folder is a run when a checkpoint lies in it directly or in one of the usual sub-folders (`checkpoints`,
`ckpt`, ..., a folder named like a checkpoint, Lightning's `version_0/checkpoints`), or when it was watched
before. Other folders are searched for runs, two levels down. A folder without any run below it is waited for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dse_monitor.runs.ledger import NAME as LEDGER
from dse_monitor.runs.record import OUTPUT_FOLDER

DEPTH = 2  # levels of folders between a watched parent and its runs; chosen by us
USUAL = frozenset(
    "checkpoint checkpoints ckpt ckpts weights models model snapshots exported_models eval teacher".split()
)


def find_runs(
    folder: Path, is_candidate: Callable[[str], bool], has_number: Callable[[str], bool]
) -> list[Path]:
    """The runs in or below a folder, sorted; empty while there are none.

    Args:
        folder: a run, or a folder of runs.
        is_candidate: judges a path below a run.
        has_number: whether a folder's name tells an epoch or a step.
    """
    return _search(folder, DEPTH, is_candidate, has_number)


def is_run(folder: Path, is_candidate: Callable[[str], bool], has_number: Callable[[str], bool]) -> bool:
    """Whether a folder is a run by the rule above."""
    if (folder / OUTPUT_FOLDER / LEDGER).exists():
        return True
    return _holds(folder, "", 3, is_candidate, has_number)


def _search(
    folder: Path, depth: int, is_candidate: Callable[[str], bool], has_number: Callable[[str], bool]
) -> list[Path]:
    if is_run(folder, is_candidate, has_number):
        return [folder]
    if not depth:
        return []
    found = []
    for name in _folders(folder):
        found += _search(folder / name, depth - 1, is_candidate, has_number)
    return found


def _holds(
    folder: Path,
    relative: str,
    depth: int,
    is_candidate: Callable[[str], bool],
    has_number: Callable[[str], bool],
) -> bool:
    """Whether a checkpoint lies here or in a usual sub-folder."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        return False
    if any(is_candidate(relative + entry.name) for entry in entries):
        return True
    return depth > 0 and any(
        (_usual(entry.name, has_number) or (relative and entry.name.isdigit()))
        and _holds(folder / entry.name, f"{relative}{entry.name}/", depth - 1, is_candidate, has_number)
        for entry in entries
        if entry.is_dir()
    )


def _usual(name: str, has_number: Callable[[str], bool]) -> bool:
    """Whether checkpoints in a folder of this name belong to the run above it; a bare number may be a run."""
    numbered = has_number(name) and not name.isdigit()
    return name.lower() in USUAL or name.startswith(("version_", "training_")) or numbered


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as listing:
            return sorted(
                entry.name for entry in listing if entry.is_dir() and not entry.name.startswith(".")
            )
    except OSError:
        return []
