"""What a watcher is asked to do: plain values, made once at the border."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from dse_monitor.alerts.parameters import Rules
from dse_monitor.checkpoints.names import NameFacts
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.runs.record import OUTPUT_FOLDER
from dse_monitor.watch.workers.worker import WorkerLimits

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """How runs are watched.

    Attributes:
        runs: folders of runs, or folders that hold runs; they need not exist yet.
        config: what is measured.
        out: output folder; None for ``dse`` below each run. With several runs, one folder per run below it.
        devices: where to evaluate, one worker each: ``auto``, ``cpu``, ``cuda``, ``cuda:INDEX`` or ``mps``.
        manners: how workers behave beside a training.
        poll_seconds: seconds between scans, and no change events; None chooses by the filesystem.
        settle_seconds: seconds a file must lie still; None chooses by the filesystem.
        once: evaluate what is there and end.
        exit_after_idle: end after so many seconds without anything to do; None never.
        until_epoch: end once a checkpoint with so many epochs done was evaluated.
        until_step: the same in steps.
        every: of checkpoints with a number in their name, only those whose count done is a multiple of it.
        min_interval: seconds between the file times of evaluated checkpoints at least.
        since: count done, ISO date or time span ("6h", "2d"): only checkpoints from there on (see
            `since_rule`).
        keep_best: how many of the best checkpoints are kept from rotation.
        copy_aside: how many waiting checkpoints are protected from rotation by a hard link.
        maps: whether feature maps are painted.
        rules: alert rules; None for the defaults.
        sinks: where alerts go besides console, ledger and event data.
    """

    runs: tuple[Path, ...]
    config: EvaluationConfig
    out: Path | None = None
    devices: tuple[str, ...] = ("auto",)
    manners: WorkerLimits = field(default_factory=WorkerLimits.default)
    poll_seconds: float | None = None
    settle_seconds: float | None = None
    once: bool = False
    exit_after_idle: float | None = None
    until_epoch: float | None = None
    until_step: int | None = None
    every: int | None = None
    min_interval: float | None = None
    since: str | None = None
    keep_best: int = 0
    copy_aside: int = 0
    maps: bool = True
    rules: Rules | None = None
    sinks: Sequence[Any] = ()

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("no run to watch")
        if not self.devices:
            raise ValueError("no device to evaluate on")
        for name in ("poll_seconds", "exit_after_idle", "min_interval"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        if self.since is not None:
            since_rule(self.since, now=0.0)

    @property
    def request(self) -> str:
        """Twelve hexadecimal digits, equal exactly when checkpoints are to be measured in the same way."""
        return self.config.request

    def to_json(self) -> dict[str, Any]:
        """Everything but the sinks as plain JSON types."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sinks"}
        return {
            **plain,
            "runs": [str(run) for run in self.runs],
            "config": self.config.to_json(),
            "out": None if self.out is None else str(self.out),
            "devices": list(self.devices),
            "manners": self.manners.to_json(),
            "rules": None if self.rules is None else asdict(self.rules),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], sinks: Sequence[Any] = ()) -> WatchOptions:
        """The inverse of :meth:`to_json`."""
        return cls(
            **{
                **data,
                "runs": tuple(Path(run) for run in data["runs"]),
                "config": EvaluationConfig.from_json(data["config"]),
                "out": None if data["out"] is None else Path(data["out"]),
                "devices": tuple(data["devices"]),
                "manners": WorkerLimits(**data["manners"]),
                "rules": None if data["rules"] is None else Rules(**data["rules"]),
                "sinks": sinks,
            }
        )

    def output(self, run: Path, parent: Path | None = None) -> Path:
        """Output folder of a run; ``parent`` is the folder of runs it was found in."""
        if self.out is None:
            return run / OUTPUT_FOLDER
        if parent is not None:
            return self.out / run.relative_to(parent)
        return self.out / run.name if len(self.runs) > 1 else self.out


def span_seconds(text: str) -> float | None:
    """Seconds of a time span such as ``30min``, ``6h`` or ``2d``; None if it is none."""
    span = _SPAN.fullmatch(text.strip())
    return float(span[1]) * _SECONDS[span[2]] if span else None


def since_rule(text: str, now: float) -> Callable[[NameFacts, float], bool]:
    """What `since` lets through, as a function of a name's facts and a file time (seconds since 1970).

    A plain number is a count of epochs (or steps, where names count steps): files without a number pass. An
    ISO date or time, or a time span before now such as ``6h`` or ``2d``, is compared with the file's time.

    Raises:
        ValueError: it is none of these.
    """
    span = span_seconds(text)
    if re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        least = float(text)

        def counted(facts: NameFacts, mtime: float) -> bool:
            done = facts.epoch_done if facts.epoch_done is not None else facts.step_done
            return done is None or done >= least

        return counted
    if span is not None:
        start = now - span
    else:
        try:
            start = datetime.fromisoformat(text.strip()).timestamp()
        except ValueError:
            raise ValueError(
                f"since {text!r}: expected a number of epochs or steps, a date such as 2026-01-31, or "
                f"a time span such as 6h or 2d"
            ) from None
    return lambda facts, mtime: mtime >= start
