"""Does the DSE term mend runs that degrade? Continued from the best checkpoint with and without it.

Every run of the study whose linear mIoU ends a point or more below its best is taken up again where DSE was
highest (the paper's recipe: resume from the best checkpoint, ten more epochs), once with each weight of the
DSE term and each seed of data order and views; what the trainer had in its optimiser and schedules goes on.
The last checkpoint of each continuation is probed with labels. A line per continuation comes out.

    python benchmarks/study_regularized.py [--setting falls] [--shard 0/2] [--out runs/study]

What was done is kept; an interrupted call goes on.
"""

from __future__ import annotations

import csv
import fcntl
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dse_monitor.evaluation.config import EvaluationConfig, Placement
from dse_monitor.evaluation.evaluator import Evaluator
from dse_monitor.preprocessing import pair
from dse_monitor.probe.prober import ProbeConfig, Prober
from dse_monitor.publish import best
from dse_monitor.runs import ledger
from dse_monitor.runs.record import OUTPUT_FOLDER
from dse_monitor.runs.series import Series

if __package__:
    from study_tables import mean_interval  # pyright: ignore[reportImplicitRelativeImport]

    from benchmarks.study import (
        RESULTS,
        RUNS,
        SETTINGS,
        Place,
        Run,
        call,
        checkpoints,
        flags_of,
        prepare,
        read,
    )
else:
    from study import (  # pyright: ignore[reportImplicitRelativeImport]
        RESULTS,
        RUNS,
        SETTINGS,
        Place,
        Run,
        call,
        checkpoints,
        flags_of,
        prepare,
        read,
    )
    from study_tables import mean_interval  # pyright: ignore[reportImplicitRelativeImport]

MORE_EPOCHS = 10  # arXiv 2510.17299 continues for ten
CLEAR_FALL = 0.01  # mIoU; as in study_tables.py
COLUMNS = ("run", "start", "weight", "seed", "epoch", "miou_linear", "miou_knn", "separability", "m_dim")


def main(
    setting: str = "falls",
    weights: tuple[float, ...] = (0.0, 0.001),
    seeds: int = 3,
    shard: str = "0/1",
    out: Path = Path("runs/study"),
    results: Path = RESULTS,
    device: str = "cpu",
    tables: bool = False,
) -> None:
    """Continue what degraded and was not continued yet.

    Args:
        setting: of the study; its runs and results must be there.
        weights: of the DSE term; 0 is without. The paper's is 0.001.
        seeds: continuations per weight.
        shard: I/N takes every N-th run, beginning with the I-th.
        out: folder of the study's scenes and runs.
        results: folder of the study's CSV files.
        device: of trainers, DSE and probes.
        tables: only print the table of what was done.
    """
    target = results / f"study_regularized_{setting}.csv"
    if tables:
        print("\n".join(table(read(target), starts(read(target), results / setting))))
        return
    first, parts = (int(number) for number in shard.split("/"))
    place = prepare(SETTINGS[setting], out / setting, device, results / setting)
    fallen = [run for run in RUNS if degraded(read(place.results / f"{run.title}.csv"))]
    for weight in weights:
        for run in fallen[first::parts]:
            for seed in range(seeds):
                done = {(row["run"], float(row["weight"]), int(row["seed"])) for row in read(target)}
                if (run.title, weight, seed) in done:
                    continue
                began = time.monotonic()
                append(target, continued(run, place, weight, seed))
                print(f"{run.title}, {weight:g}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)


def degraded(rows: list[dict[str, str]]) -> bool:
    """Whether a run's last linear mIoU lies a point or more below its best."""
    miou = [float(row["miou_linear"]) for row in rows]
    return bool(miou) and max(miou) - miou[-1] >= CLEAR_FALL


def continued(run: Run, place: Place, weight: float, seed: int) -> dict[str, Any]:
    """Train on from the checkpoint with the highest DSE and measure the end."""
    source = place.out / run.title
    folder = place.out / "regularized" / f"{run.title}-{weight:g}-{seed}"
    series = Series.from_evaluations(ledger.read(source / OUTPUT_FOLDER).evaluations)
    assert series.best is not None
    chosen = series.evaluations[series.best]
    (start,) = best.readable_files(source / OUTPUT_FOLDER, [chosen])
    if start is None:
        raise SystemExit(f"{source / chosen.source.path} is gone or was overwritten since DSE was measured")
    end = int(series.x[series.best]) + MORE_EPOCHS
    last = folder / f"checkpoint_{end:04d}.pth"
    if not last.exists():
        flags = [*flags_of(run, place), "--out", folder, "--seed", seed]
        flags += ["--dse-weight", weight, "--dse-from", "best"] if weight else []
        flags += ["--resume"] if checkpoints(folder) else ["--init-from", start]
        call(
            "dse_monitor",
            "train",
            run.method,
            *flags,
            "--more-epochs",
            MORE_EPOCHS,
            log=folder.parent / "train.log",
        )
    size = run.measured_at * place.setting.size
    labelled = place.labelled[run.measured_at]
    images, masks, count = labelled / "images", labelled / "masks", place.setting.labelled
    probed = Prober(
        ProbeConfig(
            images=images, masks=masks, num_images=count, image_size=pair(size), splits=2, device=place.device
        )
    )(last)
    held_out = EvaluationConfig(
        images=place.held_out[run.measured_at], num_images=place.setting.held_out, image_size=pair(size)
    )
    cache = str(place.out / "regularized" / f"cache-{size}")
    parts = Evaluator(held_out, Placement(cache=cache, device=place.device))(last).components
    assert parts is not None
    return {
        "run": run.title,
        "start": f"{series.x[series.best]:g}",
        "weight": f"{weight:g}",
        "seed": seed,
        "epoch": end,
        "miou_linear": f"{probed.linear.miou:.6f}",
        "miou_knn": f"{probed.knn.miou:.6f}",
        "separability": f"{parts.separability:.6f}",
        "m_dim": f"{parts.m_dim:.6f}",
    }


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a line; several processes may share the file."""
    with path.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer: csv.DictWriter[str] = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def starts(rows: list[dict[str, str]], folder: Path) -> dict[str, tuple[float, float]]:
    """Linear and nearest-neighbour mIoU where the continuations of each run began."""
    found = {}
    for row in rows:
        (line,) = (
            line for line in read(folder / f"{row['run']}.csv") if float(line["epoch"]) == float(row["start"])
        )
        found[row["run"]] = (float(line["miou_linear"]), float(line["miou_knn"]))
    return found


def table(rows: list[dict[str, str]], starts: dict[str, tuple[float, float]]) -> list[str]:
    """Mean mIoU at the end of the continuations, in percent, ± deviation over seeds.

    Linear, then nearest neighbours in brackets. Gains of the term are of linear mIoU, between continuations
    with equal seeds; their mean over runs has a 95 % interval by bootstrap over runs.

    Args:
        rows: lines of the CSV file.
        starts: linear and nearest-neighbour mIoU of each run's start.
    """
    weights = sorted({float(row["weight"]) for row in rows})
    titles = ["without" if not weight else f"weight {weight:g}" for weight in weights]
    titles += [f"gain, {weight:g}" for weight in weights if weight]
    lines = [f"| run | start at | mIoU there | {' | '.join(titles)} |", "| --- " * (3 + len(titles)) + "|"]
    gains: dict[float, list[float]] = {weight: [] for weight in weights if weight}
    for name in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == name]
        ends = {
            weight: {
                int(row["seed"]): (100 * float(row["miou_linear"]), 100 * float(row["miou_knn"]))
                for row in own
                if float(row["weight"]) == weight
            }
            for weight in weights
        }
        cells = [_cell(found) for found in ends.values()]
        for weight in gains:
            paired = [
                ends[weight][seed][0] - ends[0.0][seed][0] for seed in ends[weight] if seed in ends[0.0]
            ]
            gains[weight].append(float(np.mean(paired)) if paired else math.nan)
            cells.append(f"{np.mean(paired):+.1f} ± {np.std(paired):.1f}" if paired else "")
        linear, knn = (100 * value for value in starts[name])
        before = f"{own[0]['start']} | {linear:.1f} ({knn:.1f})"
        lines.append(f"| {name} | {before} | {' | '.join(cells)} |")
    means = ["{:+.1f} ({:+.1f} to {:+.1f})".format(*mean_interval(found)) for found in gains.values()]
    return [*lines, f"| **mean** |{' |' * (2 + len(weights))} {' | '.join(means)} |"]


def _cell(ends: dict[int, tuple[float, float]]) -> str:
    if not ends:
        return ""
    linear, knn = np.array(list(ends.values())).T
    return f"{linear.mean():.1f} ± {linear.std():.1f} ({knn.mean():.1f})"


if __name__ == "__main__":
    tyro.cli(main)
