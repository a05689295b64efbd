"""`dse-monitor runs`: what would be watched, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dse_monitor.cli.printing import FAILED, print_json
from dse_monitor.errors import RunError
from dse_monitor.flags import Flag

if TYPE_CHECKING:
    from dse_monitor.watch.files.discovery import FoundRun, Survey


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """List the runs below a folder, and why each is one.

    Nothing is watched or written; of files only names and times are looked at, and the first bytes where a
    name does not tell. docs/run_layouts.md has the rule.

    Examples:
        dse-monitor runs ~/experiments
        dse-monitor runs logs --run '2024-*' --json
    """

    paths: Annotated[tuple[Path, ...], Flag(positional=True, metavar="PATH")]
    """Folders of checkpoints, or folders that hold such runs."""
    only: Annotated[tuple[str, ...], Flag(name="run", metavar="GLOB", default="all")] = ()
    """Only runs whose name or path fits, such as 'exp_*'."""
    as_one: bool = False
    """Take all that lies below each PATH for one run, whatever it looks like."""
    as_many: bool = False
    """Take each folder below PATH that holds checkpoints for a run of its own."""
    json: bool = False
    """Print one JSON object per run."""


def runs(options: RunsOptions) -> int:
    """Print a line for each run; code 1 when there is none, 3 when not everything was looked at."""
    from dse_monitor.watch.dependencies import Dependencies
    from dse_monitor.watch.files.discovery import Search

    if not options.paths:
        raise RunError("no folder to search; give the folder of a run, or one that holds runs")
    if options.as_one and options.as_many:
        raise RunError("--as-one and --as-many contradict each other; give one of them")
    joining = "one" if options.as_one else "many" if options.as_many else "rule"
    search = Search.of(Dependencies.real(), joining=joining, chosen=options.only)
    surveys: dict[Path, Survey] = {}
    for path in options.paths:
        if not path.is_dir():
            raise RunError(f"{path} is no folder; give the folder of a run, or one that holds runs")
        surveys[path] = search(path)
    for path, survey in surveys.items():
        _print_json(survey) if options.json else _print(path, survey)
    if any(survey.unlooked for survey in surveys.values()):
        return FAILED
    return 0 if any(survey.runs for survey in surveys.values()) else 1


def _print(path: Path, survey: Survey) -> None:
    number = len(survey.runs)
    print(f"{number or 'no'} {'run' if number == 1 else 'runs'} in {path}")
    for run in survey.runs:
        print(f"  {_shown(run, path)}")
        print(f"      {run.in_words()}")
        print(f"      because: {run.reason}")
    for note in survey.notes:
        print(f"  ▲ {note}")
    if survey.unlooked:
        print(f"  ▲ not looked at, so checkpoints may be missed: {survey.unlooked}")


def _print_json(survey: Survey) -> None:
    for run in survey.runs:
        fields = {"checkpoints": run.checkpoints, "example": run.example, "writer": run.writer}
        print_json({"run": str(run.folder), **fields, "reason": run.reason, "unlooked": survey.unlooked})


def _shown(run: FoundRun, path: Path) -> str:
    if run.folder == path:
        return str(path)
    return str(run.folder.relative_to(path)) if run.folder.is_relative_to(path) else str(run.folder)
