"""What the event files of a folder hold already."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from dse_monitor.publish import encoding, event_files, frames
from dse_monitor.runs.record import POINT_COLUMNS, TAG_ALERT, TAG_MAP, TAG_POINT


@dataclass
class Published:
    """What the event files of a folder hold.

    Attributes:
        evaluations: sequence numbers of the points.
        alerts: sequence number and key of each alert.
        last_step: largest step of a point or an alert; what follows must lie above it.
        pictures: names of the maps: the sequence number of the evaluation, or ``images``.
    """

    evaluations: set[int] = field(default_factory=set)
    alerts: set[tuple[int, str]] = field(default_factory=set)
    last_step: int = 0
    pictures: set[str] = field(default_factory=set)


def published(folder: Path) -> Published:
    """Read which records the event files of a folder hold; a torn last event counts as missing."""
    found = Published()
    for path in event_files.event_files(folder):
        for event in frames.events(path):
            for value in event.summary.value:
                if value.tag.startswith(TAG_POINT):
                    row = dict(zip(POINT_COLUMNS, encoding.unpack_doubles(value.tensor), strict=False))
                    if math.isfinite(row.get("seq", math.nan)):
                        found.evaluations.add(int(row["seq"]))
                        found.last_step = max(found.last_step, event.step)
                elif value.tag.startswith(TAG_MAP):
                    found.pictures.add(value.tag.removeprefix(TAG_MAP))
                elif value.tag.startswith(TAG_ALERT):
                    with contextlib.suppress(ValueError, LookupError, TypeError):  # written by something else
                        alert = json.loads(value.tensor.string_val[0])
                        found.alerts.add((alert["seq"], alert["key"]))
                        found.last_step = max(found.last_step, event.step)
    return found
