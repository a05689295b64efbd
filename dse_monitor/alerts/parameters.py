"""When alerts speak: the numbers of the rules. Standard library alone: flags are made from them quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from dse_monitor.flags import Flag


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When to speak. Every number trades early warnings against false ones.

    Attributes:
        margin: smallest drop that matters, as a share of the run's range of DSE so far. On the published runs
            healthy ones stay below 0.09, degraded ones exceed 0.6. Smaller: earlier, and noisier.
        threshold: how many standard errors the drop must be worth in a run of up to 40 checkpoints; slightly
            more in longer ones (rules.threshold). Larger: fewer false alarms, later.
        sustain: checkpoints in a row at which it must lie beyond the margin; also how many bring the
            all-clear.
        recovered: share of ``margin`` below which the drop counts as made good.
        warmup: checkpoints before anything is judged.
        early_best: checkpoints before a run is judged that was at its best from the start (a dip during
            warm-up looks like that).
        worsened: factor by which the drop must grow after an alarm to be reported once more, as critical.
        plateau: checkpoints without progress that make a plateau (information only); 0 switches it off.
        failures: failed checkpoints in a row that make a health alert.
        stale_seconds: silence of the training that makes a health alert, s, unless four times the usual gap
            between checkpoints is longer; 0 switches it off.
        remind_seconds: time between reminders of an alert that goes on, s.
        per_hour: most messages about one run within an hour; what is held back is reported later, if still
            true.
        lam: a fixed lambda, instead of the adaptive one of the checkpoints known at the time.
    """

    margin: float = 0.2
    threshold: float = 3.4
    sustain: int = 2
    recovered: float = 0.5
    warmup: int = 5
    early_best: int = 8
    worsened: float = 2.0
    plateau: int = 20
    failures: int = 3
    stale_seconds: Annotated[float, Flag(metavar="SECONDS")] = 7200.0
    remind_seconds: Annotated[float, Flag(metavar="SECONDS")] = 86400.0
    per_hour: int = 6
    lam: Annotated[float | None, Flag(metavar="LAMBDA", default="adaptive")] = None

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise ValueError(
                f"margin is a share of the run's range of DSE, between 0 and 1, found {self.margin}"
            )
        if not 0 <= self.recovered <= 1:
            raise ValueError(f"recovered is a share of the margin, from 0 to 1, found {self.recovered}")
        for name in ("threshold", "worsened"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        for name in ("sustain", "warmup", "early_best", "failures", "per_hour"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("plateau", "stale_seconds", "remind_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.lam is not None and not 0 <= self.lam < math.inf:
            raise ValueError(f"lam must be a finite number and not negative, found {self.lam}")
