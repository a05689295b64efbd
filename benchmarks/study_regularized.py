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
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dse_monitor.evaluate import Evaluator, Probe
from dse_monitor.probe import Labelled, Prober
from dse_monitor.publish import best
from dse_monitor.record import OUTPUT_FOLDER
from dse_monitor.series import Series
from dse_monitor.watch import ledger

if __package__:
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

MORE_EPOCHS = 10  # arXiv 2510.17299 continues for ten
CLEAR_FALL = 0.01  # mIoU; as in study_tables.py
COLUMNS = ("run", "start", "weight", "seed", "epoch", "miou_linear", "miou_knn", "separability", "m_dim")


def main(
    setting: str = "falls",
    weights: tuple[float, ...] = (0.0, 0.001, 0.01),
    seeds: int = 3,
    shard: str = "0/1",
    out: Path = Path("runs/study"),
    results: Path = RESULTS,
    device: str = "cpu",
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
    """
    first, parts = (int(number) for number in shard.split("/"))
    place = prepare(SETTINGS[setting], out / setting, device, results / setting)
    target = results / f"study_regularized_{setting}.csv"
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
    (start,) = best.readable_files(source / OUTPUT_FOLDER, [series.evaluations[series.best]])
    end = int(series.x[series.best]) + MORE_EPOCHS
    last = folder / f"checkpoint_{end:04d}.pth"
    if not last.exists():
        flags = [*flags_of(run, place), "--out", folder, "--seed", seed]
        flags += ["--dse-weight", weight, "--dse-from", "best"] if weight else []
        flags += ["--resume"] if checkpoints(folder) else ["--init-from", start]
        call("trainers", run.method, *flags, "--more-epochs", MORE_EPOCHS, log=folder.parent / "train.log")
    size = run.measured_at * place.setting.size
    labelled = place.labelled[run.measured_at]
    images, masks, count = labelled / "images", labelled / "masks", place.setting.labelled
    probed = Prober(
        Labelled(images=images, masks=masks, num_images=count, image_size=size, splits=2, device=place.device)
    )(last)
    held_out = Probe(
        images=str(place.held_out[run.measured_at]),
        cache=str(place.out / "regularized" / f"cache-{size}"),
        num_images=place.setting.held_out,
        image_size=size,
        device=place.device,
    )
    parts = Evaluator(held_out)(last).components
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


def table(rows: list[dict[str, str]], starts: dict[str, tuple[float, float]]) -> str:
    """Mean mIoU at the end of the continuations, in percent, ± deviation over seeds.

    Args:
        rows: lines of the CSV file.
        starts: linear and nearest-neighbour mIoU of each run's start.
    """
    weights = sorted({float(row["weight"]) for row in rows})
    titles = [f"{'without' if not w else f'weight {w:g}'}" for w in weights]
    lines = [
        f"| run | start at | mIoU there | {' | '.join(titles)} |",
        "| --- " * (3 + len(weights)) + "|",
    ]
    gains: dict[float, list[float]] = {weight: [] for weight in weights}
    for name in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == name]
        cells = []
        for weight in weights:
            ends = {
                int(row["seed"]): 100 * np.array([float(row["miou_linear"]), float(row["miou_knn"])])
                for row in own
                if float(row["weight"]) == weight
            }
            if not ends:
                cells.append("")
                continue
            linear, knn = np.array(list(ends.values())).T
            cells.append(f"{linear.mean():.1f} ± {linear.std():.1f} ({knn.mean():.1f})")
            gains[weight].append(float(linear.mean()))
        before = " ".join(
            f"{100 * value:.1f}" if k == 0 else f"({100 * value:.1f})" for k, value in enumerate(starts[name])
        )
        lines.append(f"| {name} | {own[0]['start']} | {before} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main)
