"""The images a training reads, as it recorded them in a checkpoint. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dse_monitor.checkpoints.archive import open_archive
from dse_monitor.checkpoints.reading.contents import Opaque, attributes
from dse_monitor.errors import CheckpointError

SETTINGS = ("args", "hyper_parameters")  # where trainings keep their own settings
PATHS = ("data_path", "data_dir", "train_dir", "data_root", "data")


def data_path(checkpoint: Path) -> tuple[str, Path] | None:
    """The folder a training took its images from, if it recorded one that is there, and the setting's name.

    None as well if the checkpoint cannot be read: who measures it says why.
    """
    try:
        with open_archive(checkpoint) as archive:
            recorded = list(_recorded(archive.tree))
    except (CheckpointError, OSError):
        return None
    for name, value in recorded:
        path = _path(value)
        try:
            # A relative path was relative to a folder that nobody recorded.
            if path is not None and path.is_absolute() and path.is_dir():
                return name, path
        except (OSError, ValueError):  # too long, or not a name at all
            continue
    return None


def _recorded(tree: Any) -> Iterator[tuple[str, Any]]:
    top = attributes(tree)
    for place in SETTINGS:
        settings = attributes(top.get(place))
        for name in PATHS:
            if name in settings:
                yield f"{place}.{name}", settings[name]


def _path(value: Any) -> Path | None:
    if isinstance(value, str) and value:
        return Path(value).expanduser()
    if isinstance(value, Opaque) and value.name.startswith("pathlib.") and value.args:
        parts = value.args
        return Path(*parts) if all(isinstance(part, str) for part in parts) else None
    return None
