"""What the alerts and the selection would have said about a finished run, checkpoint by checkpoint.

People tune the rules on their own past runs with this: a run that was watched, or a CSV file of any DSE
curve.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse_monitor.alerts.book import AlertBook
from dse_monitor.alerts.message import WIDTH
from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.selection import before_alarm
from dse_monitor.alerts.trace import lineage
from dse_monitor.errors import RunError
from dse_monitor.metric.components import Components
from dse_monitor.runs import ledger
from dse_monitor.runs.order import order
from dse_monitor.runs.record import OUTPUT_FOLDER, Alert, Evaluation, Source, to_json
from dse_monitor.runs.series import Series, places_of

COUNTS = ("epoch", "step")  # columns of a CSV file that tell the place; one of them is needed
COLUMNS = (*COUNTS, "dse", "dse_se")  # the last is optional
INFORMATION = ("plateau",)  # kinds that are told, but are no alarm


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """What would have been said.

    Attributes:
        name: the file or folder.
        series: the whole run.
        alerts: alarms in the order they would have come, ``firing`` and ``resolved``.
        information: the same for what is no alarm (a plateau).
        before_alarm: indices of the candidates among what was known at the first alarm.
        notes: what was left aside while reading, in words.
    """

    name: str
    series: Series
    alerts: tuple[Alert, ...]
    information: tuple[Alert, ...]
    before_alarm: tuple[int, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types. Positions are in the unit of ``axis``: epochs, steps or places in the order."""
        x = [_whole(value) for value in self.series.x]
        return {
            "axis": self.series.axis,
            "checkpoints": len(x),
            "alerts": [_entry(alert) for alert in self.alerts],
            "information": [_entry(alert) for alert in self.information],
            "best": None if self.series.best is None else x[self.series.best],
            "candidates": [x[i] for i in self.series.candidates],
            "before_alarm": [x[i] for i in self.before_alarm],
            "lambda": self.series.lam,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return _render(self)


def replay(path: Path, rules: Rules | None = None) -> ReplayResult:
    """Run the rules over a finished run as if its checkpoints came one by one, in training order.

    Args:
        path: a run that was watched (or its output folder), or a CSV file with the columns ``epoch`` or
            ``step`` (or both), ``dse`` and, if known, ``dse_se``. Of two rows at one place the later
            counts, as after a resume.
        rules: when to speak; None for the defaults.

    Raises:
        RunError: the path is neither, or a row or column cannot be understood.
    """
    path, rules = Path(path), rules or Rules()
    if path.is_dir():
        arrivals, notes, causes = *_from_ledger(path), True
    elif path.exists():
        arrivals, notes, causes = *_from_csv(path), False
    else:
        raise RunError(
            f"{path} does not exist; expected a watched run or a CSV file with columns epoch,dse[,dse_se]"
        )
    # Clocks play no part in a replay: no reminders, no hourly limit, nothing is stale.
    book = AlertBook(
        path.stem if path.is_file() else path.resolve().name,
        dataclasses.replace(rules, stale_seconds=0, remind_seconds=0, per_hour=max(len(arrivals), 1) * 10),
        causes=causes,
    )
    told = [alert for k, e in enumerate(arrivals) for alert in book.advance([e], now=float(k))]
    series = Series.from_evaluations(lineage(arrivals).evaluations, lam=rules.lam)
    return ReplayResult(
        name=str(path),
        series=series,
        alerts=tuple(a for a in told if a.kind not in INFORMATION),
        information=tuple(a for a in told if a.kind in INFORMATION),
        before_alarm=tuple(before_alarm(series, rules)),
        notes=tuple(notes),
    )


def _from_ledger(folder: Path) -> tuple[list[Evaluation], list[str]]:
    """The measured checkpoints of a watched run in training order, numbered anew as if they came so."""
    view = ledger.read(ledger.find(folder) or folder / OUTPUT_FOLDER)
    line = lineage(view.evaluations)
    bad = [e for e in view.evaluations if e.status == "invalid"]
    known = sorted((*line.evaluations, *bad), key=lambda e: e.seq)
    merged = [known[row] for row in order(places_of(known)).rows]
    notes = [*view.warnings, *(note.text for note in Series.from_evaluations(view.evaluations).notes)]
    if line.abandoned:
        notes.append(f"{line.abandoned} on a branch that was abandoned when the run was resumed: left out")
    return [dataclasses.replace(e, seq=k) for k, e in enumerate(merged, 1)], notes


def _from_csv(path: Path) -> tuple[list[Evaluation], list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} cannot be read as a CSV file: {error}") from error
    numbered = [
        (n, [cell.strip() for cell in row]) for n, row in enumerate(rows, 1) if any(c.strip() for c in row)
    ]
    if not numbered:
        raise RunError(f"{path} is empty; expected a first line 'epoch,dse' or 'epoch,dse,dse_se'")
    names = [name.lower() for name in numbered[0][1]]
    missing = "epoch" if not any(name in names for name in COUNTS) else "dse" if "dse" not in names else ""
    if missing:
        raise RunError(
            f"{path} has no column {missing!r}; its first line names {', '.join(map(repr, names))}, "
            f"expected 'epoch,dse' or 'epoch,dse,dse_se', or 'step' in place of or beside the epoch"
        )
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise RunError(f"{path} has the column {twice[0]!r} twice; leave one")
    if len(numbered) == 1:
        raise RunError(f"{path} names its columns but holds no checkpoint; expected a line for each")
    notes = [f"column {name!r} is not used" for name in names if name not in COLUMNS]
    measured = [_row(path, line, names, row, k) for k, (line, row) in enumerate(numbered[1:], 1)]
    line = lineage(measured).evaluations
    if len(line) < len(measured):
        notes.append(
            f"{len(measured) - len(line)} rows are replaced by later ones of the same or an earlier epoch"
        )
    return [dataclasses.replace(e, seq=k) for k, e in enumerate(line, 1)], notes


def _row(path: Path, line: int, names: Sequence[str], row: Sequence[str], seq: int) -> Evaluation:
    if len(row) != len(names):
        raise RunError(f"{path}, line {line}: {len(row)} values for {len(names)} columns")
    cells = dict(zip(names, row, strict=True))
    done = _done(path, line, cells)
    dse = _number(path, line, "dse", cells["dse"])
    written = cells.get("dse_se", "")
    se = math.nan if written.lower() in ("", "nan") else _number(path, line, "dse_se", written)
    if se < 0:
        raise RunError(f"{path}, line {line}: dse_se is {written}; expected a standard error, 0 or more")
    # DSE stands in for its terms: without M_dim any lambda leaves it as it is.
    components = Components(
        m_inter=dse,
        m_intra_image=0.0,
        m_intra_batch=0.0,
        m_dim=0.0,
        m_dim_se=0.0,
        separability_se=se,
        separability_dim_cov=0.0,
    )
    step = int(done["step"]) if "step" in done else None
    source = Source(path="", epoch=done.get("epoch"), step=step, content=f"line {line}")
    return Evaluation(status="scored", source=source, components=components, seq=seq)


def _done(path: Path, line: int, cells: Mapping[str, str]) -> dict[str, float]:
    """Epochs and steps done; of two columns one may be empty."""
    asked = [name for name in COUNTS if name in cells]
    done = {}
    for name in asked:
        if not cells[name] and len(asked) == 2 and any(cells[other] for other in asked):
            continue
        done[name] = _number(path, line, name, cells[name])
        if done[name] < 0 or (name == "step" and done[name] % 1):
            kind = "epochs done, 0 or more" if name == "epoch" else "a whole number of steps, 0 or more"
            raise RunError(f"{path}, line {line}: {name} is {cells[name]}; expected {kind}")
    return done


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise RunError(f"{path}, line {line}: {name} is {cell!r}; expected a number") from None
    if not math.isfinite(value):
        raise RunError(
            f"{path}, line {line}: {name} is {cell}; expected a finite number; leave out such checkpoints"
        )
    return value


def _entry(alert: Alert) -> dict[str, Any]:
    data = to_json(alert)
    kept = (
        "kind",
        "status",
        "severity",
        "epoch",
        "step",
        "since",
        "drop",
        "drop_se",
        "lam",
        "shares",
        "cause",
    )
    entry = {name: data[name] for name in kept}
    for name in ("epoch", "since"):
        entry[name] = None if data[name] is None else _whole(data[name])
    entry["best_at"] = None if data["best_at"] is None else _whole(data["best_at"])
    return {**entry, "best_path": data["best_path"], "message": data["message"]}


def _whole(value: float) -> int | float:
    """Counts without a needless fraction."""
    return int(value) if float(value).is_integer() else float(value)


def _render(result: ReplayResult) -> str:
    series = result.series
    lines = [f"{result.name}: {len(series)} checkpoints"]
    if len(series):
        unit = {"epoch": "epochs", "step": "steps", "order": "in order"}[series.axis]
        span = f"{unit} {_whole(series.x[0]):,} to {_whole(series.x[-1]):,}"
        lines[0] += f", {span}, lambda {series.lam:.3g}"
    lines += [line for note in result.notes for line in textwrap.wrap(f"note: {note}", WIDTH)]
    for alert in sorted((*result.alerts, *result.information), key=lambda a: a.wall_time):
        lines += ["", *_story(alert)]
    if not result.alerts:
        lines += ["", "No alarm."]
    if series.best is not None:
        places = ", ".join(f"{_whole(series.x[i]):,}" for i in series.candidates)
        lines += ["", f"best        {series.place(series.best)}", f"candidates  {places}"]
        if result.before_alarm and result.before_alarm != series.candidates:
            early = ", ".join(f"{_whole(series.x[i]):,}" for i in result.before_alarm)
            lines.append(f"            before the first alarm: {early}")
    return "\n".join(lines)


def _story(alert: Alert) -> Iterable[str]:
    at = {"epoch": alert.epoch, "step": alert.step}.get(alert.axis)
    mark = "▲" if alert.status == "firing" and alert.kind not in INFORMATION else "●"
    place = "" if at is None else f"{_whole(at):>8,}"
    yield f"{place:>8} {mark} {alert.kind} {alert.status} ({alert.severity})"
    yield from textwrap.wrap(alert.message, WIDTH, initial_indent=" " * 11, subsequent_indent=" " * 11)
