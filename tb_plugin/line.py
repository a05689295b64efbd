"""The line of a run's checkpoints: order, axis and positions, by the one definition of runs/order.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dse_monitor.runs.order import Order, Places, epoch_bounds, fractions, order, steps_per_epoch
from dse_monitor.runs.record import POINT_COLUMNS, STATUS_CODES, Evaluation, Source
from dse_monitor.runs.series import notes_of
from dse_monitor.tb_plugin.points import Floats, Points

COLUMNS = ("seq", "x", "epochs", "untrained")


@dataclass(frozen=True)
class Line:
    """What a page needs to draw the checkpoints in their order.

    Attributes:
        table: float64 [n, len(COLUMNS)] in training order: sequence number, position on the axis, epochs
            done with their fractions (NaN where there is nothing to tell them from), and 1 for the untrained
            network.
        estimated: whether the fractions are at the most steps an epoch can have, as its length is not known.
        axis: ``epoch``, ``step`` or ``order``; unit of the positions.
        settings: the fingerprint they were measured under as a whole number; -1 where it is unknown.
        aside: sequence numbers of those that do not count, with why (``replaced``, ``merged``) and the
            sequence number of the one that counts in their place.
        other_settings: how many were measured under other settings.
        notes: what there is to say of all that, a sentence each.
    """

    table: Floats
    estimated: bool
    axis: str
    settings: int
    aside: tuple[tuple[int, str, int], ...]
    other_settings: int
    notes: tuple[str, ...]

    def header(self) -> dict[str, Any]:
        """All but the table, as plain JSON types."""
        return {
            "columns": COLUMNS,
            "axis": self.axis,
            "estimated": self.estimated,
            "settings": self.settings,
            "aside": self.aside,
            "other_settings": self.other_settings,
            "notes": self.notes,
        }


def line_of(points: Points, details: Callable[[list[int]], Sequence[Mapping[str, Any]]]) -> Line:
    """The line of a run's points.

    Args:
        points: all evaluations of the run.
        details: metadata of evaluations with these sequence numbers, those that are there.
    """
    columns = dict(zip(POINT_COLUMNS, points.table.T, strict=True))
    separability = columns["m_inter"] - (columns["m_intra_image"] + columns["m_intra_batch"]) / 2
    scored = columns["status"] == STATUS_CODES["scored"]
    finite = scored & np.isfinite(separability) & np.isfinite(columns["m_dim"])
    measured = np.flatnonzero(finite)
    settings = np.where(np.isfinite(columns["settings"]), columns["settings"], -1)[measured]
    current = settings[-1] if len(settings) else -1
    chosen = measured[settings == current]
    known = {name: column[chosen] for name, column in columns.items()}
    places = Places(
        epoch=_finite(known["epoch"]),
        step=_finite(known["step"]),
        time=_finite(known["mtime"]),
        path=_whole(known["file"]),
        content=_whole(known["content"]),
        within=known["within"] == 1,
    )
    found, seqs = order(places), known["seq"].astype(np.int64)
    per_epoch = found.steps_per_epoch or steps_per_epoch(places.epoch, places.step)
    bounds = epoch_bounds(places.epoch, places.step) if per_epoch is None else None
    others, not_finite = len(measured) - len(chosen), int(scored.sum()) - len(measured)
    notes = notes_of(found, _sources(found, places, seqs, details), others=others, not_finite=not_finite)
    epochs = fractions(places, per_epoch or (bounds and bounds[1]))[found.rows]
    return Line(
        table=np.stack([seqs[found.rows], found.x, epochs, found.untrained], 1).astype(np.float64),
        estimated=bounds is not None,
        axis=found.axis,
        settings=int(current),
        aside=tuple(
            (int(seqs[row]), why, int(seqs[kept]))
            for why, pairs in (("replaced", found.replaced), ("merged", found.merged))
            for row, kept in pairs
        ),
        other_settings=others,
        notes=tuple(note.text for note in notes if note.kind != "settings"),  # the page says that itself
    )


def _sources(
    found: Order,
    places: Places,
    seqs: np.ndarray,
    details: Callable[[list[int]], Sequence[Mapping[str, Any]]],
) -> Callable[[int], Evaluation]:
    """What the notes ask of some rows: their names are not among the numbers."""
    named = [row for pair in (*found.replaced[:1], *found.merged[:1]) for row in pair]
    named += found.rows[found.untrained][:1].tolist()
    told = {item["seq"]: item for item in details([int(seqs[row]) for row in named])} if named else {}

    def get(row: int) -> Evaluation:
        data = told.get(int(seqs[row]), {})
        epoch, step = float(places.epoch[row]), float(places.step[row])
        source = Source(
            path=str(data.get("path", "a checkpoint")),
            content=str(data.get("content", "")),
            epoch=None if math.isnan(epoch) else epoch,
            step=None if math.isnan(step) else int(step),
        )
        return Evaluation(status="scored", source=source)

    return get


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _whole(values: Floats) -> np.ndarray:
    """Numbers of 48 bits as whole numbers; 0 where there is none, or what an event file holds is not one."""
    usable = np.isfinite(values) & (np.abs(values) < 2.0**62)
    return np.where(usable, values, 0.0).astype(np.int64)
