"""`dse-monitor score`: single checkpoints here, or a whole run with as many processes as there are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dse_monitor.cli.checkpoints import check_arch, check_layout
from dse_monitor.cli.printing import FAILED, number, print_json, progress
from dse_monitor.errors import CheckpointError, RunError
from dse_monitor.evaluation.config import EvaluationConfig, Placement
from dse_monitor.flags import Flag
from dse_monitor.watch.options import WatchOptions

if TYPE_CHECKING:
    from dse_monitor.runs.record import Evaluation


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Measure single checkpoints, or a finished RUN on many GPUs.

    Of single checkpoints DSE is given at lambda 1, since lambda belongs to a run. A RUN is measured as `watch
    --once` would, by as many processes as there are; if one of them dies, the same command measures what is
    missing.

    Examples:
        dse-monitor score a.pth b.pth --images ~/data/unlabelled
        torchrun --nproc-per-node 8 -m dse_monitor score runs/exp1 --images ~/data
    """

    checkpoints: Annotated[tuple[Path, ...], Flag(positional=True, metavar="CKPT")]
    """Files or checkpoint folders, or the folder of one run."""
    config: EvaluationConfig
    """What is measured."""
    device: Annotated[str, Flag(metavar="DEVICE")] = "auto"
    """Where to compute: auto, cpu, cuda, cuda:INDEX or mps; of a RUN, auto and cuda give each process a GPU
    of its own."""
    json: bool = False
    """Print one JSON object per line."""
    cache: Annotated[Path | None, Flag(metavar="DIR", default="~/.cache/dse-monitor", advanced=True)] = None
    """Folder for the decoded images of single checkpoints."""
    threads: Annotated[int | None, Flag(default="a quarter of the cores, at most 4", advanced=True)] = None
    """CPU threads of each process of a RUN."""


def score(options: ScoreOptions) -> int:
    """Measure what is named and print a line for each checkpoint."""
    check_layout(options.config.layout)
    check_arch(options.config)
    if run := _one_run(options.checkpoints):
        return _score_run(_found_run(run), options)
    from dse_monitor.evaluation.evaluator import Evaluator
    from dse_monitor.runs.record import to_json

    folder = options.cache or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dse-monitor"
    evaluator = Evaluator(options.config, Placement(cache=str(folder), device=options.device))
    failed = False
    for path in options.checkpoints:
        with progress(path.name) as report:
            evaluation = evaluator(path, report)
        failed |= evaluation.status != "scored"
        if options.json:
            dse = None if evaluation.components is None else evaluation.components.dse()
            print_json({**to_json(evaluation), "dse_lambda1": dse})
        else:
            print(_line(evaluation), flush=True)
    return FAILED if failed else 0


def _one_run(paths: tuple[Path, ...]) -> Path | None:
    """The folder of a run, if one is named: among several processes any folder, else one without weights."""
    from dse_monitor.checkpoints.archive import open_archive

    def holds_no_weights(folder: Path) -> bool:
        try:
            open_archive(folder)
        except CheckpointError as error:
            return type(error) is CheckpointError  # the others say what is wrong with a checkpoint
        return False

    runs = [p for p in paths if p.is_dir() and ("WORLD_SIZE" in os.environ or holds_no_weights(p))]
    if runs and len(paths) > 1:
        raise RunError(f"{runs[0]} is the folder of a run: score it alone, or name checkpoints")
    if not runs and "WORLD_SIZE" in os.environ:
        raise RunError("several processes score the folder of a run; score single checkpoints with one")
    return runs[0] if runs else None


def _found_run(folder: Path) -> Path:
    """The one run in a folder; the folder itself while it holds none.

    Raises:
        RunError: it holds several.
    """
    from dse_monitor.watch.dependencies import Dependencies
    from dse_monitor.watch.files.discovery import Search

    runs = [run.folder for run in Search.of(Dependencies.real())(folder).runs]
    if folder in runs or not runs:
        return folder
    first, *others = runs
    if others:
        raise RunError(
            f"{folder} holds {len(runs)} runs; score one of them, such as {first} "
            f"(`dse-monitor runs {folder}` lists them)"
        )
    return first


def _score_run(run: Path, options: ScoreOptions) -> int:
    from dse_monitor.watch import ranks
    from dse_monitor.watch.console import Console

    asked = WatchOptions(
        runs=(run,),
        config=options.config,
        devices=(options.device,),
        threads=options.threads,
        nice=0,  # nobody trains beside it
        once=True,
        json=options.json,
        plain=not options.json,
    )

    def said(place: ranks.Place, evaluation: Evaluation) -> None:
        if place.world > 1 and not options.json:
            print(f"process {place.rank} of {place.world}: {_line(evaluation)}", flush=True)

    return ranks.score(asked, Console(form=asked.form), said)


def _line(evaluation: Evaluation) -> str:
    source, values = evaluation.source, evaluation.components
    if values is None:
        return f"{source.path}  {evaluation.status}: {evaluation.reason}"
    counts = {"epoch": source.epoch, "step": source.step}
    where = "  ".join(f"{name} {count:g}" for name, count in counts.items() if count is not None)
    return (
        f"{source.path}  {where}  DSE {values.dse():+.3f} ± {number(values.dse_se())}  "
        f"separability {values.separability:+.3f}  dim {values.m_dim:.3f}  "
        f"{evaluation.seconds['total']:.1f} s"
    )
