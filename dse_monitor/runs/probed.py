"""What probes with labels found about a run's checkpoints: the ledger in ``<RUN>/dse/probe/``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dse_monitor.runs import ledger
from dse_monitor.runs.record import PROBE_FOLDER

NUMBERS = ("miou_linear", "miou_linear_std", "miou_knn", "miou_knn_std")  # as columns beside DSE


@dataclass(frozen=True, kw_only=True)
class Probed:
    """One checkpoint's probes as they are kept.

    Attributes:
        seq: the evaluation's sequence number.
        truth: fingerprint of the labelled images, see `probe.Prober.truth`.
        wall_time: when it was probed, seconds since 1970.
        numbers: values of `NUMBERS`; a deviation over one split is nan.
    """

    seq: int
    truth: str
    wall_time: float
    numbers: dict[str, float]


def read(output: Path) -> list[Probed]:
    """What was probed last of each evaluation with the newest labelled images; nothing if nobody probed.

    Args:
        output: the run's output folder.

    Raises:
        RunError: a newer version of this program wrote it.
    """
    found = list(facts(ledger.Ledger(output / PROBE_FOLDER / ledger.NAME)))
    newest = found[-1].truth if found else ""
    return list({item.seq: item for item in found if item.truth == newest}.values())


def facts(book: ledger.Ledger) -> Iterator[Probed]:
    """All that was probed, in the order of recording."""
    for fact in book.facts():
        if fact.kind == "probed":
            data = fact.data
            scores = (data[kind][name] for kind in ("linear", "knn") for name in ("miou", "miou_std"))
            values = (math.nan if score is None else float(score) for score in scores)
            yield Probed(
                seq=data["seq"],
                truth=data["truth"],
                wall_time=fact.time,
                numbers=dict(zip(NUMBERS, values, strict=True)),
            )
