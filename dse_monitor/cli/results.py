"""`dse-monitor best`, `status` and `export`: what was found in watched runs."""

from __future__ import annotations

import dataclasses
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dse_monitor.cli.printing import number, print_json
from dse_monitor.errors import RunError
from dse_monitor.flags import Flag
from dse_monitor.reader import output_folder
from dse_monitor.runs.record import finite

WIDTH = 100  # columns of a line of notes; paths may be longer

if TYPE_CHECKING:
    from dse_monitor.alerts.selection import Choice
    from dse_monitor.runs.series import Series


@dataclass(frozen=True, kw_only=True)
class BestOptions:
    """Name the checkpoint of a watched run to take.

    The next candidates are listed below it, with how likely each is the better one.

    Examples:
        dse-monitor best runs/exp1
        cp "$(dse-monitor best runs/exp1 --path-only)" best.pth
    """

    run: Annotated[Path, Flag(positional=True, metavar="RUN")]
    """A watched run, or its output folder."""
    top: Annotated[int, Flag(metavar="COUNT")] = 3
    """Candidates listed."""
    path_only: bool = False
    """Print the path of the best and nothing else."""
    before_alarm: bool = False
    """Choose only among what was known when a degradation was first reported."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")


def best(options: BestOptions) -> int:
    """Print the candidates, the best first."""
    from dse_monitor.alerts import selection
    from dse_monitor.publish.best import readable_files
    from dse_monitor.runs import ledger
    from dse_monitor.runs.series import Series

    output = output_folder(options.run)
    series = Series.from_evaluations(ledger.read(output).evaluations)
    if options.before_alarm:
        series = dataclasses.replace(series, candidates=tuple(selection.before_alarm(series)))
    choices = selection.best_table(series, options.top)
    if not choices or series.best is None:
        what = "only the untrained network was scored yet" if len(series) else "no checkpoint was scored yet"
        raise RunError(f"{options.run}: {what}; `dse-monitor status {options.run}` says what happens")
    chosen = [series.evaluations[i] for i in series.candidates[: options.top]]
    files = readable_files(output, chosen)
    if options.path_only:
        print(files[0] or output.parent / chosen[0].source.path)
        return 0 if files[0] else 1
    if options.json:
        rows = [
            {**finite(dataclasses.asdict(choice)), "file": None if file is None else str(file)}
            for choice, file in zip(choices, files, strict=True)
        ]
        notes = {"notes": [note.text for note in series.notes]} if series.notes else {}
        print_json({"axis": series.axis, "lambda": series.lam, "candidates": rows, **notes})
        return 0
    print("\n".join(_table(series, choices, files)))
    return 0


def _table(series: Series, choices: Sequence[Choice], files: Sequence[Path | None]) -> list[str]:
    """The candidates as lines of columns, and in the end what to take."""
    lines = [f"{series.axis:>8}     DSE  ± err  behind  separability    dim  P(better)  checkpoint"]
    for choice, file in zip(choices, files, strict=True):
        name = choice.path if file is None or file.name in choice.path else str(file)
        lines.append(
            f"{choice.at:8.10g}  {choice.dse:+6.3f}  {number(choice.dse_se)}  {choice.behind:6.3f}"
            f"  {choice.separability:+12.3f}  {choice.m_dim:5.3f}  {number(choice.better, '      best'):>9}"
            f"  {name}{'' if file else '   (file gone)'}"
        )
    lost = float(series.dse[series.candidates[0]] - series.dse[-1])
    lines.append(
        f"Take {series.place(series.candidates[0])}: best of {series.counted} scored, "
        f"{lost:.3f} above the last (lambda {series.lam:.3g})."
    )
    for note in series.notes:
        lines += textwrap.wrap(f"note: {note.text}", WIDTH, subsequent_indent=" " * 6, break_long_words=False)
    return lines


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Say what a watcher is doing now.

    Its queue, the checkpoint at hand, the last error, the next scan.

    Examples:
        dse-monitor status runs/exp1
        dse-monitor status --json
    """

    run: Annotated[
        Path | None, Flag(positional=True, metavar="RUN", default="every run below the current folder")
    ] = None
    """A watched run, or its output folder."""
    json: bool = False
    """Print one JSON object per run."""


def status(options: StatusOptions) -> int:
    """Print what is known of one run, or of all below the current folder."""
    from dse_monitor.runs.status import read_status, render

    run = options.run
    folders = [output_folder(run)] if run else sorted(p.parent for p in Path().rglob("dse/records.jsonl"))
    for folder in folders:
        found = read_status(folder, now=time.time())
        print_json(found.to_json()) if options.json else print(render(found))
    return 0 if folders else 1


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a run's records as a table, or rebuild its event data.

    Without a flag the table goes to standard output as CSV.

    Examples:
        dse-monitor export runs/exp1 --csv exp1.csv
        dse-monitor export runs/exp1 --events
    """

    run: Annotated[Path, Flag(positional=True, metavar="RUN")]
    """A watched run, or its output folder."""
    csv: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Write one row per checkpoint to FILE; - for standard output."""
    json: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Write one object per checkpoint to FILE; - for standard output."""
    events: bool = False
    """Rebuild the TensorBoard data from the ledger."""


def export(options: ExportOptions) -> int:
    """Write what is asked for."""
    from dse_monitor.runs import export as tables

    output = output_folder(options.run)
    if options.csv is None and options.json is None and not options.events:
        tables.write_csv(output, None)
    if options.csv:
        tables.write_csv(output, _file(options.csv))
    if options.json:
        tables.write_json(output, _file(options.json))
    if options.events:
        from dse_monitor.publish.rebuild import rebuild_events

        print(f"{rebuild_events(output):,} checkpoints written to {output}")
    return 0


def _file(path: Path) -> Path | None:
    """The file to write; None for standard output."""
    return None if str(path) == "-" else path
