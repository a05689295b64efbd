"""What a worker is asked to do with one checkpoint, as plain JSON types (see workers/worker.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dse_monitor.evaluation.config import Placement
from dse_monitor.runs import identity
from dse_monitor.runs.history import History
from dse_monitor.watch.files.protected import Protected
from dse_monitor.watch.files.waiting import Candidate
from dse_monitor.watch.options import WatchOptions


def cache(out: Path) -> Path:
    """Where the sample of images and its pixels lie, below a run's output folder."""
    return out / "images"


def measuring(options: WatchOptions, out: Path, device: str) -> dict[str, Any]:
    """What is measured, and where: the part that is equal in all jobs.

    Args:
        options: what the user asked for.
        out: the run's output folder.
        device: where to evaluate.
    """
    maps = str(out) if options.maps else None
    place = Placement(cache=str(cache(out)), device=device, maps=maps)
    return {"config": options.config.to_json(), "place": place.to_json()}


def job(folder: Path, protected: Protected, candidate: Candidate) -> dict[str, Any]:
    """Which file is measured, in which version and under which name.

    Args:
        folder: the run's folder.
        protected: checkpoints protected from rotation; one whose own file is gone is read there.
        candidate: the checkpoint.

    Raises:
        OSError: the file is gone.
    """
    path = protected.resolve(candidate.path)
    stamp = candidate.stamp if path == folder / candidate.path else identity.stamp(path)
    return {"path": str(path), "name": candidate.path, "stamp": stamp.to_list()}


def last_images(history: History) -> dict[str, Any] | None:
    """What was done to the images of the newest evaluation; None if nothing was measured yet."""
    settings = next((row.settings for row in reversed(history) if row.settings is not None), None)
    return None if settings is None else settings.preprocessing.to_json()
