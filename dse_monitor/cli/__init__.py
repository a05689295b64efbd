"""The command line: one page of typed functions. tyro makes the flags; a body builds, calls and prints.

Bodies import what they need, so `dse-monitor --help` answers without loading torch. Exit codes: 0 done,
1 nothing to show, 2 an error that one line explains, 3 a checkpoint could not be measured (or a test alert
not be delivered), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from dse_monitor.alerts.parameters import Rules
from dse_monitor.errors import RunError
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.probe.options import Labelled
from dse_monitor.runs.record import OUTPUT_FOLDER, finite
from dse_monitor.watch.process import ended

if TYPE_CHECKING:
    from dse_monitor.alerts.sinks.delivery import Sink
    from dse_monitor.probe.prober import ProbeResult
    from dse_monitor.runs.record import Evaluation

FAILED = 3  # exit code of `score` and `watch --once` when a checkpoint could not be measured

app = tyro.extras.SubcommandApp()


@app.command
def watch(
    run: Positional[tuple[Path, ...]],
    measuring: OmitArgPrefixes[EvaluationConfig],
    out: Path | None = None,
    device: tuple[str, ...] = ("auto",),
    once: bool = False,
    until_epoch: float | None = None,
    until_step: int | None = None,
    exit_after_idle: float | None = None,
    every: int | None = None,
    since: str | None = None,
    min_interval: float | None = None,
    keep_best: int = 0,
    copy_aside: int = 0,
    poll_seconds: float | None = None,
    settle_seconds: float | None = None,
    gpu_share: float = 1.0,
    cpu_fallback: bool = False,
    threads: int | None = None,
    maps: bool = True,
    alert: tuple[str, ...] = (),
    test_alert: bool = False,
    link: str = "",
    rules: Rules = Rules(),  # noqa: B008  frozen
    plain: bool = False,
    json: bool = False,
) -> int:
    """Score each checkpoint that appears under RUN; give POLL_SECONDS on network disks.

    Args:
        run: Folders of checkpoints, or folders that hold such runs; they need not exist yet.
        measuring: What is measured.
        out: Output folder instead of RUN/dse.
        device: auto, cpu, cuda, cuda:INDEX or mps; several make one worker each.
        once: Evaluate what is there and end.
        until_epoch: End once so many epochs were scored.
        until_step: End once so many steps were scored.
        exit_after_idle: End after so many seconds without work.
        every: Of numbered checkpoints, only every so many epochs or steps.
        since: Only from this epoch or step, date (2026-01-31) or age (6h, 2d) on.
        min_interval: Seconds at least between the checkpoints scored.
        keep_best: Keep this many of the best checkpoints in RUN/dse/keep.
        copy_aside: Protect this many waiting checkpoints from rotation by a link.
        poll_seconds: Seconds between scans; chosen by the filesystem if not given.
        settle_seconds: Seconds a file must lie still; chosen by the filesystem if not given.
        gpu_share: Part of the time the GPU may compute for us.
        cpu_fallback: Use the CPU rather than wait for room on a GPU.
        threads: CPU threads; a quarter of the cores if not given, at most four.
        maps: Paint feature maps for the tab.
        alert: Where alerts go as well: log, command:PROGRAM, webhook:env:NAME, email:file:PATH.
        test_alert: Only send a test alert to each of them, say how that went, and end.
        link: Address of the charts, added to alerts.
        rules: When to speak.
        plain: Plain lines, also on a terminal.
        json: One JSON object per line.
    """
    from dse_monitor.alerts.sinks import from_spec
    from dse_monitor.watch.options import WatchOptions
    from dse_monitor.watch.process import become
    from dse_monitor.watch.workers.worker import WorkerLimits

    sinks = [from_spec(spec, link) for spec in alert]
    if test_alert:
        return _try_sinks(run[0] if run else Path(), sinks)
    manners: dict[str, Any] = {"gpu_share": gpu_share, "cpu_fallback": cpu_fallback}
    options = WatchOptions(
        runs=run,
        config=measuring,
        out=out,
        devices=device,
        manners=WorkerLimits.default(**manners, **({} if threads is None else {"threads": threads})),
        poll_seconds=poll_seconds,
        settle_seconds=settle_seconds,
        once=once,
        exit_after_idle=exit_after_idle,
        until_epoch=until_epoch,
        until_step=until_step,
        every=every,
        min_interval=min_interval,
        since=since,
        keep_best=keep_best,
        copy_aside=copy_aside,
        maps=maps,
        rules=rules,
    )
    become(options, "json" if json else "plain" if plain else "auto", alert, link)


def _try_sinks(run: Path, sinks: list[Sink]) -> int:
    from dse_monitor.alerts.book import test_alert
    from dse_monitor.alerts.sinks.trial import try_sinks

    if not sinks:
        raise RunError("--test-alert has nothing to try; name sinks with --alert, such as webhook:env:NAME")
    outcome = try_sinks(test_alert(run.resolve().name, now=time.time()), sinks)
    for name, reason in outcome.items():
        print(f"✗ {name}: {reason}" if reason else f"✓ {name}: taken")
    return FAILED if any(outcome.values()) else 0


@app.command
def score(
    checkpoint: Positional[tuple[Path, ...]],
    measuring: OmitArgPrefixes[EvaluationConfig],
    device: str = "auto",
    cache: Path | None = None,
    threads: int | None = None,
    json: bool = False,
) -> int:
    """Measure single checkpoints, or all of a finished RUN with many GPUs.

    Single checkpoints: DSE is given at lambda 1, since lambda belongs to a run. A RUN is measured as `watch`
    would do it, by as many processes as there are (`torchrun --nproc-per-node 8 -m dse_monitor score RUN`).
    If one of them dies, the same command measures what is missing.

    Args:
        checkpoint: Files or checkpoint folders, or one folder of a run.
        measuring: What is measured.
        device: auto, cpu, cuda, cuda:INDEX or mps; for a RUN auto and cuda give each process its own GPU.
        cache: Folder for decoded images of single checkpoints; ~/.cache/dse-monitor if not given.
        threads: CPU threads of each process of a RUN; a quarter of the cores if not given, at most four.
        json: One JSON object per line.
    """
    if run := _one_run(checkpoint):
        return _score_run(run, measuring, device, threads, json)
    from dse_monitor.evaluation.config import Placement
    from dse_monitor.evaluation.evaluator import Evaluator
    from dse_monitor.runs.record import to_json

    folder = cache or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dse-monitor"
    evaluator = Evaluator(measuring, Placement(cache=str(folder), device=device))
    failed = False
    for path in checkpoint:
        with _progress(path.name) as progress:
            evaluation = evaluator(path, progress)
        failed |= evaluation.status != "scored"
        if json:
            dse = None if evaluation.components is None else evaluation.components.dse()
            _print_json({**to_json(evaluation), "dse_lambda1": dse})
        else:
            print(_score_line(evaluation), flush=True)
    return FAILED if failed else 0


@app.command
def best(
    run: Positional[Path],
    top: int = 3,
    json: bool = False,
    path_only: bool = False,
    before_alarm: bool = False,
) -> int:
    """Name the checkpoint of a watched run to take, and the next candidates.

    Args:
        run: A watched run, or its output folder.
        top: Candidates listed.
        json: One JSON object.
        path_only: The path of the best and nothing else.
        before_alarm: Choose only among what was known when a degradation was first reported.
    """
    from dse_monitor.alerts import selection
    from dse_monitor.publish.best import readable_files
    from dse_monitor.runs import ledger
    from dse_monitor.runs.series import Series

    output = _output_folder(run)
    series = Series.from_evaluations(ledger.read(output).evaluations)
    if before_alarm:
        series = dataclasses.replace(series, candidates=tuple(selection.before_alarm(series)))
    table = selection.best_table(series, top)
    if not table or series.best is None:
        raise RunError(f"{run}: no checkpoint was scored yet; `dse-monitor status {run}` says what happens")
    chosen = [series.evaluations[i] for i in series.candidates[:top]]
    files = readable_files(output, chosen)
    if path_only:
        print(files[0] or output.parent / chosen[0].source.path)
        return 0 if files[0] else 1
    if json:
        rows = [
            {**finite(dataclasses.asdict(choice)), "file": None if file is None else str(file)}
            for choice, file in zip(table, files, strict=True)
        ]
        _print_json({"axis": series.axis, "lambda": series.lam, "candidates": rows})
        return 0
    print(f"{series.axis:>8}     DSE  ± err  behind  separability    dim  P(better)  checkpoint")
    for choice, file in zip(table, files, strict=True):
        name = choice.path if file is None or file.name in choice.path else str(file)
        print(
            f"{choice.at:8g}  {choice.dse:+6.3f}  {_number(choice.dse_se)}  {choice.behind:6.3f}"
            f"  {choice.separability:+12.3f}  {choice.m_dim:5.3f}  {_number(choice.better, '      best'):>9}"
            f"  {name}{'' if file else '   (file gone)'}"
        )
    lost = float(series.dse[series.candidates[0]] - series.dse[-1])
    print(
        f"Take {series.axis} {table[0].at:g}: best of {len(series)} scored, {lost:.3f} above the last "
        f"(lambda {series.lam:.3g})."
    )
    return 0


@app.command
def inspect(
    path: Positional[Path],
    layout: str | None = None,
    encoder: str | None = None,
    arch: str | None = None,
    num_heads: int | None = None,
    json: bool = False,
) -> None:
    """Say what is recognised in a checkpoint, and why; nothing of the file is executed.

    Args:
        path: Checkpoint file or folder.
        layout: Checkpoint layout to assume.
        encoder: Which network of the file to take.
        arch: timm model to assume.
        num_heads: Attention heads to assume.
        json: One JSON object.
    """
    from dse_monitor.checkpoints.inspect import inspect_checkpoint, render

    found = inspect_checkpoint(path, layout=layout, encoder=encoder, arch=arch, num_heads=num_heads)
    _print_json(found.to_json()) if json else print(render(found))


@app.command
def layouts(json: bool = False) -> None:
    """List the training codes whose checkpoints are known by name; docs/layouts.md says more of each.

    Args:
        json: All that is known of each, one JSON object per line.
    """
    from dse_monitor.checkpoints.inspect import layouts_table

    table = layouts_table()
    if json:
        for row in table:
            _print_json(row)
        return
    columns = ("name", "example", "evaluated")
    rows = [dict(zip(columns, columns, strict=True)), *table]
    widths = {name: max(len(row[name]) for row in rows) for name in columns}
    for row in rows:
        print("  ".join(row[name].ljust(widths[name]) for name in columns).rstrip())


@app.command
def status(run: Positional[Path | None] = None, json: bool = False) -> int:
    """Say what a watcher is doing now: queue, current checkpoint, last error, next look.

    Args:
        run: A watched run or its output folder; every run below the current folder if not given.
        json: One JSON object per run.
    """
    from dse_monitor.runs.status import read_status, render

    folders = [_output_folder(run)] if run else sorted(p.parent for p in Path().rglob("dse/records.jsonl"))
    for folder in folders:
        found = read_status(folder, now=time.time())
        _print_json(found.to_json()) if json else print(render(found))
    return 0 if folders else 1


@app.command
def silence(
    run: Positional[Path],
    rule: Literal["all", "degradation", "non-finite", "failures", "stale", "plateau"] = "all",
    during: str | None = None,
    off: bool = False,
) -> None:
    """Mute the alerts of a watched run; what is still true when the silence ends is told then.

    Args:
        run: A watched run or its output folder; a watcher at work hears of it at its next look.
        rule: Which alerts.
        during: How long (30min, 6h, 2d); until the alert is resolved if not given.
        off: Take back what was muted before.
    """
    from dse_monitor.watch.options import span_seconds
    from dse_monitor.watch.run.requests import ask_silence

    seconds = 0.0 if off else None
    if during is not None:
        if off:
            raise RunError("--off takes a silence back, so it goes without --during")
        seconds = span_seconds(during)
        if not seconds:
            raise RunError(f"--during {during!r} is no time; expected such as 30min, 6h or 2d")
    ask_silence(_output_folder(run), rule, now=time.time(), seconds=seconds)
    alerts = "alerts" if rule == "all" else f"{rule} alerts"
    length = (
        "are told again" if off else f"are silent for {during}" if during else "are silent until resolved"
    )
    print(f"{run}: {alerts} {length}")


@app.command
def export(
    run: Positional[Path], csv: Path | None = None, json: Path | None = None, events: bool = False
) -> None:
    """Write a run's records as a table, or build its event data anew.

    Args:
        run: A watched run or its output folder.
        csv: File for one row per checkpoint; - for standard output.
        json: File for one object per checkpoint; - for standard output.
        events: Rebuild the TensorBoard data from the ledger.
    """
    from dse_monitor.runs import export as tables

    output = _output_folder(run)
    if csv is None and json is None and not events:
        csv = Path("-")
    if csv:
        tables.write_csv(output, None if str(csv) == "-" else csv)
    if json:
        tables.write_json(output, None if str(json) == "-" else json)
    if events:
        from dse_monitor.publish.rebuild import rebuild_events

        print(f"{rebuild_events(output):,} checkpoints written to {output}")


@app.command
def replay(path: Positional[Path], json: bool = False, rules: Rules = Rules()) -> None:  # noqa: B008  frozen
    """Say what the alert rules would have reported on a finished run, and when.

    Args:
        path: A watched run, or a CSV file with columns epoch,dse[,dse_se].
        json: One JSON object.
        rules: When to speak.
    """
    from dse_monitor.alerts.replay import replay as run_again

    result = run_again(path, rules)
    _print_json(result.to_json()) if json else print(result)


@app.command
def probe(
    checkpoint: Positional[tuple[Path, ...]],
    labelled: OmitArgPrefixes[Labelled],
    json: bool = False,
) -> int:
    """Measure dense quality with labels (linear and nearest-neighbour mIoU), to compare DSE with.

    A watched RUN is probed checkpoint by checkpoint, at the image size and with the network DSE was measured
    on; what was probed before is not probed again, and the numbers stand next to DSE in the tab and in
    `dse-monitor export`. A checkpoint that cannot be probed is named on stderr, the others go on, and the
    exit code is 3.

    Args:
        checkpoint: Files or checkpoint folders, or one watched run.
        labelled: Labelled images and their use.
        json: One JSON object per line.
    """
    from dse_monitor.errors import CheckpointError, FeatureError, NonFiniteFeatures
    from dse_monitor.probe.prober import Prober

    if not checkpoint:
        raise RunError("nothing to probe: name checkpoints, or one watched run")
    homes = [home for path in checkpoint if (home := _output_if_watched(path))]
    if homes and len(checkpoint) > 1:
        raise RunError(f"{homes[0]} belongs to a watched run: probe it alone, or name checkpoints")
    if homes:
        return _probe_run(homes[0], labelled, json)
    prober = Prober(labelled)
    failed = False
    for path in checkpoint:
        try:
            with _progress(path.name) as progress:
                result = prober(path, progress)
        except (CheckpointError, FeatureError, NonFiniteFeatures, OSError) as error:
            print(f"{path}: not probed: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        if json:
            _print_json(result.to_json())
        else:
            print(f"{path}  {_miou_line(result)}", flush=True)
    return FAILED if failed else 0


@app.command
def scenes(
    folder: Positional[Path], count: int = 1000, size: int = 224, seed: int = 0, masks: bool = False
) -> None:
    """Draw procedural scenes, for people without images at hand.

    Args:
        folder: Where the PNG files go; an interrupted call continues.
        count: Number of scenes.
        size: Side in pixels.
        seed: Another seed draws other scenes.
        masks: Also write segmentation masks: FOLDER/images and FOLDER/masks.
    """
    from dse_monitor.scenes import write_folder

    with _progress("scenes") as progress:
        write_folder(folder, count, size, seed, masks, lambda done, total: progress("drawing", done, total))
    print(f"{count:,} scenes of {size} px in {folder}")


@app.command
def demo(out: Path = Path("dse-demo"), serve: bool = True, port: int | None = None) -> int:
    """Train a tiny network on procedural scenes, watch it, and serve TensorBoard; a few minutes on two cores.

    Args:
        out: Folder for scenes, run and logs.
        serve: Serve TensorBoard during the run and after it, until Ctrl-C.
        port: Port of TensorBoard; a free one if not given.
    """
    from dse_monitor.cli.demo import run

    return run(out, serve=serve, port=port)


def _one_run(paths: tuple[Path, ...]) -> Path | None:
    """The folder of a run, if one is named: among several processes any folder, else one without weights."""
    from dse_monitor.checkpoints.archive import open_archive
    from dse_monitor.errors import CheckpointError

    def holds_no_weights(folder: Path) -> bool:
        try:
            open_archive(folder)
        except CheckpointError as error:
            return type(error) is CheckpointError  # the others tell what is wrong with a checkpoint
        return False

    runs = [p for p in paths if p.is_dir() and ("WORLD_SIZE" in os.environ or holds_no_weights(p))]
    if runs and len(paths) > 1:
        raise RunError(f"{runs[0]} is the folder of a run: score it alone, or name checkpoints")
    if not runs and "WORLD_SIZE" in os.environ:
        raise RunError("several processes score the folder of a run; score single checkpoints with one")
    return runs[0] if runs else None


def _score_run(
    run: Path, measuring: EvaluationConfig, device: str, threads: int | None, as_json: bool
) -> int:
    from dse_monitor.watch import ranks
    from dse_monitor.watch.console import Console
    from dse_monitor.watch.options import WatchOptions
    from dse_monitor.watch.workers.worker import WorkerLimits

    manners = WorkerLimits.default(nice=0, **({} if threads is None else {"threads": threads}))
    options = WatchOptions(runs=(run,), config=measuring, devices=(device,), manners=manners, once=True)

    def said(place: ranks.Place, evaluation: Evaluation) -> None:
        if place.world > 1 and not as_json:
            print(f"process {place.rank} of {place.world}: {_score_line(evaluation)}", flush=True)

    return ranks.score(options, Console(form="json" if as_json else "plain"), said)


def _output_if_watched(run: Path) -> Path | None:
    """Where a run's ledger lies: the folder given, or `dse` below it."""
    folders = (run, run / OUTPUT_FOLDER)
    return next((folder for folder in folders if (folder / "records.jsonl").is_file()), None)


def _output_folder(run: Path) -> Path:
    if folder := _output_if_watched(run):
        return folder
    raise RunError(
        f"{run} was not watched: no records.jsonl in it or in {run / OUTPUT_FOLDER}; start dse-monitor watch"
    )


def _probe_run(output: Path, labelled: Labelled, as_json: bool) -> int:
    """Probe a watched run and say what its labels think of its DSE."""
    from dse_monitor.probe import run as probed
    from dse_monitor.runs import ledger
    from dse_monitor.runs.series import Series

    failed = False

    def refused(evaluation: Evaluation, error: Exception) -> None:
        nonlocal failed
        failed = True
        print(f"{evaluation.source.path}: not probed: {error}", file=sys.stderr, flush=True)

    line = Series.from_evaluations(ledger.read(output).evaluations)
    dse = {evaluation.seq: value for evaluation, value in zip(line.evaluations, line.dse, strict=True)}
    for evaluation, result in probed.probe_run(output, labelled, _progress, refused):
        if as_json:
            _print_json({"seq": evaluation.seq, "dse": dse[evaluation.seq], **result.to_json()})
        else:
            place = f"{evaluation.source.path}  DSE {dse[evaluation.seq]:+.3f}"
            print(f"{place}  {_miou_line(result)}", flush=True)
    if not as_json:
        print(probed.summary(output))
    return FAILED if failed else 0


def _miou_line(result: ProbeResult) -> str:
    return f"linear mIoU {result.linear.miou:.4f}  k-NN mIoU {result.knn.miou:.4f}"


def _score_line(evaluation: Evaluation) -> str:
    source, values = evaluation.source, evaluation.components
    if values is None:
        return f"{source.path}  {evaluation.status}: {evaluation.reason}"
    counts = {"epoch": source.epoch, "step": source.step}
    where = "  ".join(f"{name} {count:g}" for name, count in counts.items() if count is not None)
    return (
        f"{source.path}  {where}  DSE {values.dse():+.3f} ± {_number(values.dse_se())}  "
        f"separability {values.separability:+.3f}  dim {values.m_dim:.3f}  "
        f"{evaluation.seconds['total']:.1f} s"
    )


def _number(value: float, missing: str = "    -") -> str:
    return f"{value:.3f}" if math.isfinite(value) else missing


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error while something runs, nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title)

        def report(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{title}  {stage}", completed=done, total=total)

        yield report


def _print_json(data: object) -> None:
    print(json.dumps(data, allow_nan=False), flush=True)


def main() -> None:
    """Entry point of `dse-monitor`: our own errors become one line on stderr and exit code 2."""
    sys.exit(
        ended(
            lambda: app.cli(
                prog="dse-monitor",
                description="Watch self-supervised training for dense degradation (DSE), without labels.",
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
            )
        )
    )
