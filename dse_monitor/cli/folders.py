"""Which folder a user means: a watched run, its output, or a run with checkpoints."""

from __future__ import annotations

from pathlib import Path

from dse_monitor.errors import RunError
from dse_monitor.runs.record import OUTPUT_FOLDER


def output_if_watched(run: Path) -> Path | None:
    """Where a run's ledger lies: the folder given, or `dse` below it; None if there is none."""
    folders = (run, run / OUTPUT_FOLDER)
    return next((folder for folder in folders if (folder / "records.jsonl").is_file()), None)


def output_folder(run: Path) -> Path:
    """Where a run's ledger lies.

    Raises:
        RunError: the run was not watched.
    """
    if folder := output_if_watched(run):
        return folder
    raise RunError(
        f"{run} was not watched: no records.jsonl in it or in {run / OUTPUT_FOLDER}; start dse-monitor watch"
    )
