"""What a watcher is asked to do: plain values, made once at the border."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dse_monitor.alerts.parameters import Rules
from dse_monitor.checkpoints.names import NameFacts
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.flags import ADVANCED, Flag
from dse_monitor.runs.record import OUTPUT_FOLDER
from dse_monitor.watch.console import Form
from dse_monitor.watch.workers.worker import WorkerLimits

if TYPE_CHECKING:
    from dse_monitor.alerts.sinks.delivery import Sink

_NOT_NEGATIVE = (
    "poll_seconds",
    "settle_seconds",
    "exit_after_idle",
    "min_interval",
    "until_epoch",
    "until_step",
    "keep_best",
    "copy_aside",
)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Score each checkpoint that appears under RUN.

    Runs beside a training and reads the files it writes. Each checkpoint becomes a line, a record in RUN/dse
    and a point in TensorBoard; a fall of dense quality becomes an alert. Ctrl-C ends it, the same command
    goes on.

    What the command line leaves out is looked for: --images in what RUN was measured on before,
    dse-monitor.toml beside RUN or above it, the variable DSE_MONITOR_IMAGES and the data path that the
    training recorded; `dse-monitor config RUN` shows what holds.

    Examples:
        dse-monitor watch runs/exp1 --images ~/data/unlabelled
        dse-monitor watch runs --images ~/data/unlabelled --alert webhook:env:CHAT

    Raises:
        ValueError: nothing to watch, or a number out of range.
    """

    runs: Annotated[tuple[Path, ...], Flag(positional=True, metavar="RUN")]
    """Folders of checkpoints, or folders that hold such runs; they need not exist yet."""
    config: Annotated[EvaluationConfig, Flag(elsewhere=(("images", "looked for, see above"),))]
    """What is measured."""
    only: Annotated[tuple[str, ...], Flag(name="run", metavar="GLOB", default="all")] = ()
    """Of the runs found below RUN, only those whose name or path fits, such as 'exp_*'."""
    as_one: bool = False
    """Take all that lies below each RUN for one run, whatever it looks like."""
    as_many: bool = False
    """Take each folder below RUN that holds checkpoints for a run of its own."""
    unit: Annotated[Literal["epoch", "step"] | None, Flag(metavar="UNIT", default="found out")] = None
    """What bare numbers in names such as model_7.pt count: epoch or step."""
    remeasure: bool = False
    """Measure again what was scored on other pictures that lay under the same names."""
    out: Annotated[Path | None, Flag(metavar="DIR", default="dse in each RUN")] = None
    """Output folder; with several runs, one folder per run below it."""
    devices: Annotated[tuple[str, ...], Flag(name="device", metavar="DEVICE")] = ("auto",)
    """Where to compute: auto, cpu, cuda, cuda:INDEX or mps; several make one worker each."""
    once: bool = False
    """Evaluate what is there and end."""
    until_epoch: Annotated[float | None, Flag(metavar="EPOCH", default="never")] = None
    """End once so many epochs were scored."""
    until_step: Annotated[int | None, Flag(metavar="STEP", default="never")] = None
    """End once so many steps were scored."""
    exit_after_idle: Annotated[float | None, Flag(metavar="SECONDS", default="never")] = None
    """End after so many seconds without work."""
    every: Annotated[int | None, Flag(metavar="COUNT", default="all")] = None
    """Of numbered checkpoints, only those whose epoch or step is a multiple of it."""
    since: Annotated[str | None, Flag(metavar="START", default="all")] = None
    """Only from this epoch or step, date (2026-01-31) or age (6h, 2d) on."""
    keep_best: Annotated[int, Flag(metavar="COUNT")] = 0
    """Keep so many of the best checkpoints in RUN/dse/keep, whatever the training deletes."""
    alert: Annotated[tuple[str, ...], Flag(metavar="SINK")] = ()
    """Where alerts go as well: log, command:PROGRAM, webhook:env:NAME, email:file:PATH."""
    test_alert: bool = False
    """Only send a test alert to each SINK, report how that went, and end."""
    link: Annotated[str, Flag(metavar="URL")] = ""
    """Address of the charts, added to alerts."""
    plain: bool = False
    """Print plain lines, also on a terminal."""
    json: bool = False
    """Print one JSON object per line."""
    min_interval: Annotated[float | None, Flag(metavar="SECONDS", default="none", advanced=True)] = None
    """Seconds at least between the file times of scored checkpoints."""
    copy_aside: Annotated[int, Flag(metavar="COUNT", advanced=True)] = 0
    """Protect so many waiting checkpoints from rotation by a hard link."""
    poll_seconds: Annotated[
        float | None, Flag(metavar="SECONDS", default="chosen by the filesystem", advanced=True)
    ] = None
    """Seconds between scans, which then replace change events; give it on network disks."""
    settle_seconds: Annotated[
        float | None, Flag(metavar="SECONDS", default="chosen by the filesystem", advanced=True)
    ] = None
    """Seconds a file must lie unchanged before it is read."""
    gpu_share: Annotated[float, Flag(metavar="SHARE", advanced=True)] = 1.0
    """Part of the time the GPU may compute for the monitor, in (0, 1]."""
    cpu_fallback: Annotated[bool, ADVANCED] = False
    """Use the CPU rather than wait for room on a GPU."""
    threads: Annotated[int | None, Flag(default="a quarter of the cores, at most 4", advanced=True)] = None
    """CPU threads of a worker."""
    found: Annotated[tuple[tuple[str, str], ...], Flag(hidden=True)] = ()
    """Options that were found elsewhere than on the command line, with their values, and where: in words."""
    nice: Annotated[int, Flag(hidden=True)] = 10
    """Added to the niceness of workers, which run beside a training."""
    maps: Annotated[bool, ADVANCED] = True
    """Paint feature maps for the tab."""
    rules: Annotated[Rules, Flag(name="rules", advanced=True)] = Rules()  # noqa: RUF009  frozen
    """When to alert."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("no run to watch")
        if not self.devices:
            raise ValueError("no device to evaluate on")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative, got {value}")
        for name in ("every", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if not 0 < self.gpu_share <= 1:
            raise ValueError(f"--gpu-share is a part of the time, above 0 and up to 1, got {self.gpu_share}")
        if self.as_one and self.as_many:
            raise ValueError("--as-one and --as-many contradict each other; give one of them")
        if self.since is not None:
            since_rule(self.since, now=0.0)

    @property
    def joining(self) -> Literal["rule", "one", "many"]:
        """How folders are joined to runs (see files/walk.py)."""
        return "one" if self.as_one else "many" if self.as_many else "rule"

    @property
    def request(self) -> str:
        """Twelve hexadecimal digits, equal exactly when checkpoints are to be measured in the same way."""
        return self.config.request

    @property
    def asked(self) -> dict[str, Any]:
        """Device, alerts and link under their flags' names, where they are not the defaults."""
        given = {"device": list(self.devices), "alert": list(self.alert), "link": self.link}
        return {name: value for name, value in given.items() if value not in (["auto"], [], "")}

    @property
    def form(self) -> Form:
        """How the watcher speaks."""
        return "json" if self.json else "plain" if self.plain else "auto"

    @property
    def manners(self) -> WorkerLimits:
        """How workers behave beside a training."""
        threads = {} if self.threads is None else {"threads": self.threads}
        shares = {"gpu_share": self.gpu_share, "cpu_fallback": self.cpu_fallback}
        return WorkerLimits.default(nice=self.nice, **shares, **threads)

    @cached_property
    def sinks(self) -> tuple[Sink, ...]:
        """Where alerts go besides console, ledger and event data, made from `alert`.

        Raises:
            OutputError: there is no such sink, or its secret is missing or malformed.
        """
        if not self.alert:  # who has none does without the memory of HTTP and SMTP clients
            return ()
        from dse_monitor.alerts.sinks import from_spec

        return tuple(from_spec(spec, self.link) for spec in self.alert)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "runs": [str(run) for run in self.runs],
            "config": self.config.to_json(),
            "out": None if self.out is None else str(self.out),
            "only": list(self.only),
            "devices": list(self.devices),
            "alert": list(self.alert),
            "found": [list(pair) for pair in self.found],
            "rules": asdict(self.rules),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WatchOptions:
        """The inverse of `to_json`."""
        return cls(
            **{
                **data,
                "runs": tuple(Path(run) for run in data["runs"]),
                "config": EvaluationConfig.from_json(data["config"]),
                "out": None if data["out"] is None else Path(data["out"]),
                "only": tuple(data["only"]),
                "devices": tuple(data["devices"]),
                "alert": tuple(data["alert"]),
                "found": tuple((what, where) for what, where in data["found"]),
                "rules": Rules(**data["rules"]),
            }
        )

    def output(self, run: Path, parent: Path | None = None) -> Path:
        """Output folder of a run; ``parent`` is the folder of runs it was found in."""
        if self.out is None:
            return run / OUTPUT_FOLDER
        if parent is not None:
            below = run.is_relative_to(parent)  # a link may have led elsewhere
            return self.out / (run.relative_to(parent) if below else run.name)
        return self.out / run.name if len(self.runs) > 1 else self.out


def span_seconds(text: str) -> float | None:
    """Seconds of a time span such as ``30min``, ``6h`` or ``2d``; None if it is not one."""
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
            counts = (facts.epoch_done, facts.step_done, facts.number)
            done = next((count for count in counts if count is not None), None)
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
