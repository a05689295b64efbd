"""`dse-monitor probe`: dense quality with labels, of single checkpoints or of a watched run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dse_monitor.cli.printing import FAILED, print_json, progress
from dse_monitor.errors import CheckpointError, FeatureError, NonFiniteFeatures, RunError
from dse_monitor.flags import Flag
from dse_monitor.probe.options import ProbeConfig
from dse_monitor.runs import ledger

if TYPE_CHECKING:
    from dse_monitor.probe.prober import ProbeResult
    from dse_monitor.runs.record import Evaluation


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Measure mIoU with labels, linear and k-NN, to compare with DSE.

    A watched RUN is probed checkpoint by checkpoint, at the image size and with the network DSE was measured
    on; what was probed before is not probed again, and the numbers stand next to DSE in the tab and in
    `dse-monitor export`. A checkpoint that cannot be probed is named on standard error, the others go on, and
    the exit code is 3.

    Examples:
        dse-monitor probe runs/exp1 --labelled voc/images --masks voc/masks
        dse-monitor probe a.pth b.pth --labelled voc/images --masks voc/masks
    """

    checkpoints: Annotated[tuple[Path, ...], Flag(positional=True, metavar="RUN|CKPT")]
    """Files or checkpoint folders, or one watched run."""
    config: ProbeConfig
    """Labelled images and their use."""
    json: bool = False
    """Print one JSON object per line."""


def probe(options: ProbeOptions) -> int:
    """Probe what is named and print a line for each checkpoint."""
    if not options.checkpoints:
        raise RunError("nothing to probe: name checkpoints, or one watched run")
    homes = [home for path in options.checkpoints if (home := ledger.find(path))]
    if homes and len(options.checkpoints) > 1:
        raise RunError(f"{homes[0]} belongs to a watched run: probe it alone, or name checkpoints")
    if homes:
        return _probe_run(homes[0], options)
    from dse_monitor.probe.prober import Prober

    prober = Prober(options.config)
    failed = False
    for path in options.checkpoints:
        try:
            with progress(path.name) as report:
                result = prober(path, report)
        except (CheckpointError, FeatureError, NonFiniteFeatures, OSError) as error:
            print(f"{path}: not probed: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        if options.json:
            print_json(result.to_json())
        else:
            print(f"{path}  {_line(result)}", flush=True)
    return FAILED if failed else 0


def _probe_run(output: Path, options: ProbeOptions) -> int:
    """Probe a watched run and say what its labels think of its DSE."""
    from dse_monitor.probe import run as probed
    from dse_monitor.runs.series import Series

    failed = False

    def refused(evaluation: Evaluation, error: Exception) -> None:
        nonlocal failed
        failed = True
        print(f"{evaluation.source.path}: not probed: {error}", file=sys.stderr, flush=True)

    line = Series.from_evaluations(ledger.read(output).evaluations)
    dse = {evaluation.seq: value for evaluation, value in zip(line.evaluations, line.dse, strict=True)}
    for evaluation, result in probed.probe_run(output, options.config, progress, refused):
        if options.json:
            print_json({"seq": evaluation.seq, "dse": dse[evaluation.seq], **result.to_json()})
        else:
            place = f"{evaluation.source.path}  DSE {dse[evaluation.seq]:+.3f}"
            print(f"{place}  {_line(result)}", flush=True)
    if not options.json:
        print(probed.summary(output))
    return FAILED if failed else 0


def _line(result: ProbeResult) -> str:
    return f"linear mIoU {result.linear.miou:.4f}  k-NN mIoU {result.knn.miou:.4f}"
