"""Tables and figures of the study, from its CSV files alone.

    python benchmarks/study_tables.py [--setting cpu] [--figures docs]

Per run: Kendall's tau of each label-free number with linear mIoU over the run's checkpoints, with a 95 %
interval by moving-block bootstrap; the mIoU that is kept by taking the last checkpoint, the best by DSE, or
the best of DSE's three candidates; and where the alerts would have spoken. Needs scipy, and matplotlib for
the figures (the study extra).
"""

from __future__ import annotations

import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import kendalltau

from dse_monitor.alerts.book import AlertBook
from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.selection import before_alarm
from dse_monitor.metric.components import Components
from dse_monitor.runs.record import Evaluation, Source
from dse_monitor.runs.series import Series

if __package__:
    from benchmarks.study import RESULTS, RUNS, SETTINGS, read
else:
    from study import RESULTS, RUNS, SETTINGS, read  # pyright: ignore[reportImplicitRelativeImport]

Floats = NDArray[np.float64]

RESAMPLES = 1000
BLOCK = 4  # checkpoints; neighbours are alike, so they are drawn together
SEED = 0
CLEAR_FALL = 0.01  # mIoU; a run whose last checkpoint lies this far below its best has degraded


@dataclass(frozen=True)
class Study:
    """One run's checkpoints in training order.

    Attributes:
        name: of the run.
        series: DSE at the run's adaptive lambda.
        numbers: label-free numbers by name, each [n], signed so that higher should be better.
        linear: mIoU of the linear probe [n].
        knn: mIoU of the nearest-neighbour probe [n].
    """

    name: str
    series: Series
    numbers: dict[str, Floats]
    linear: Floats
    knn: Floats


def finished(folder: Path, planned: int) -> tuple[list[Path], list[str]]:
    """Files of the runs with all ``planned`` checkpoints, in the study's order, and what the others have."""
    files, others = [], []
    for run in RUNS:
        path = folder / f"{run.title}.csv"
        if (count := len(read(path))) >= planned:
            files.append(path)
        else:
            others.append(f"{run.title} ({count} of {planned} checkpoints)")
    return files, others


def load(path: Path) -> Study:
    """A run from its CSV file.

    Raises:
        ValueError: fewer than two checkpoints.
    """
    rows = read(path)
    if len(rows) < 2:
        raise ValueError(f"{path}: {len(rows)} checkpoints, at least 2 are needed; run benchmarks/study.py")
    columns = {
        name: np.array([float(row[name]) for row in rows], np.float64) for name in rows[0] if name != "run"
    }
    names = {f.name for f in dataclasses.fields(Components)} & columns.keys()
    found = [
        Evaluation(
            status="scored",
            source=Source(path=f"epoch {row['epoch']}", epoch=float(row["epoch"]), content=str(k)),
            components=Components(**{name: float(row[name]) for name in names}),  # pyright: ignore[reportArgumentType]
            seq=k,
        )
        for k, row in enumerate(rows, 1)
    ]
    series = Series.from_evaluations(found)
    numbers = {
        "DSE": series.dse,
        "separability": series.separability,
        "m_inter": columns["m_inter"],
        "-m_intra": -(columns["m_intra_image"] + columns["m_intra_batch"]) / 2,
        "m_dim": series.m_dim,
        "RankMe": columns["rankme_dense"],
        "RankMe, pooled": columns["rankme_pooled"],
        "-alpha-ReQ": -columns["alpha_req_dense"],
        "-loss": -columns["loss"],
    }
    return Study(rows[0]["run"], series, numbers, columns["miou_linear"], columns["miou_knn"])


def tau(a: Floats, b: Floats) -> float:
    """Kendall's tau-b of those pairs in which both are finite; nan if there is no order."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 2:
        return math.nan
    return float(np.asarray(kendalltau(a[known], b[known]))[0])


def tau_interval(a: Floats, b: Floats, seed: int = SEED) -> tuple[float, float]:
    """95 % interval of :func:`tau` by moving blocks of neighbouring checkpoints, drawn with replacement."""
    n, rng = len(a), np.random.default_rng(seed)
    block = min(BLOCK, n)
    drawn = []
    for _ in range(RESAMPLES):
        starts = rng.integers(0, n - block + 1, math.ceil(n / block))
        at = (starts[:, None] + np.arange(block)).ravel()[:n]
        drawn.append(tau(a[at], b[at]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Sequence[float], seed: int = SEED) -> tuple[float, float, float]:
    """Mean over runs and its 95 % interval by bootstrap over runs."""
    known = np.array([v for v in values if math.isfinite(v)])
    rng = np.random.default_rng(seed)
    means = known[rng.integers(0, len(known), (RESAMPLES, len(known)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(known.mean()), float(low), float(high)


def first_alarm(series: Series) -> float | None:
    """Epoch at which degradation would have been reported as the checkpoints came, or None."""
    book = AlertBook("study", Rules(stale_seconds=0, remind_seconds=0, per_hour=10 * len(series)))
    for k, evaluation in enumerate(series.evaluations):
        for alert in book.advance([evaluation], now=float(k)):
            if alert.kind == "degradation" and alert.status == "firing":
                return alert.epoch
    return None


def tau_table(studies: Sequence[Study], truth: str = "linear") -> list[str]:
    """Tau of each number with the probe, a row per run and their mean."""
    names = list(studies[0].numbers)
    lines = [f"| run | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    found: dict[str, list[float]] = {name: [] for name in names}
    for study in studies:
        cells = []
        for name, values in study.numbers.items():
            value = tau(values, getattr(study, truth))
            found[name].append(value)
            cells.append(f"{value:+.2f}")
            if name == "DSE":
                low, high = tau_interval(values, getattr(study, truth))
                cells[-1] += f" ({low:+.2f} to {high:+.2f})"
        lines.append(f"| {study.name} | {' | '.join(cells)} |")
    means = ["{:+.2f} ({:+.2f} to {:+.2f})".format(*mean_interval(found[name])) for name in names]
    return [*lines, f"| **mean** | {' | '.join(means)} |"]


def choice_table(studies: Sequence[Study]) -> list[str]:
    """Linear mIoU, in points, of the checkpoint that each rule keeps."""
    head = "last | first | best by DSE | best of DSE's three | before alarm | lowest loss | best of all"
    lines = [f"| run | {head} | fall at the end |", "| --- " * 9 + "|"]
    gains = []
    for study in studies:
        truth = 100 * study.linear
        early = before_alarm(study.series)
        loss = study.numbers["-loss"]
        kept = [
            truth[-1],
            truth[0],
            truth[study.series.best],
            max(truth[i] for i in study.series.candidates),
            max((truth[i] for i in early), default=math.nan),
            truth[int(np.nanargmax(loss))] if np.isfinite(loss).any() else math.nan,
            truth.max(),
        ]
        gains.append([value - truth[-1] for value in kept[1:]])
        fall = " ".join(f"{value:.1f} |" for value in kept)
        lines.append(f"| {study.name} | {fall} {truth.max() - truth[-1]:.1f} |")
    cells = [
        "{:+.1f} ({:+.1f} to {:+.1f})".format(*mean_interval(column)) for column in zip(*gains, strict=True)
    ]
    return [*lines, f"| **mean gain over the last** | | {' | '.join(cells)} | |"]


def alarm_table(studies: Sequence[Study]) -> list[str]:
    """Where DSE and mIoU have their best, and where the alert spoke."""
    head = "epochs | best mIoU at | fall of mIoU after it, points | best DSE at | alert at | fall by then"
    lines = [f"| run | {head} |", "| --- " * 7 + "|"]
    for study in studies:
        x, truth = study.series.x, 100 * study.linear
        best, alarm = int(truth.argmax()), first_alarm(study.series)
        spoken = "none | "
        if alarm is not None:
            at = int(np.searchsorted(x, alarm))
            spoken = f"{alarm:g} | {truth[: at + 1].max() - truth[at]:.1f}"
        lines.append(
            f"| {study.name} | {x[-1]:g} | {x[best]:g} | {truth[best] - truth[-1]:.1f} "
            f"| {x[study.series.best]:g} | {spoken} |"
        )
    return lines


def across_runs(studies: Sequence[Study]) -> str:
    """Whether DSE also orders different runs, which it is not made for: lambda is each run's own."""
    last = np.array([study.linear[-1] for study in studies])
    values = np.array([study.series.separability[-1] + study.series.m_dim[-1] for study in studies])
    return f"Across runs, last checkpoints, lambda 1: tau {tau(values, last):+.2f} over {len(studies)} runs."


def draw(studies: Sequence[Study], target: Path) -> None:
    """DSE beside mIoU for every run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 4
    rows = math.ceil(len(studies) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(11, 2.1 * rows), squeeze=False)
    for axis in axes.flat[len(studies) :]:
        axis.set_visible(False)
    for study, axis in zip(studies, axes.flat, strict=False):
        x, twin = study.series.x, axis.twinx()
        axis.plot(x, 100 * study.linear, color="#2f6fb3", linewidth=1.3)
        axis.plot(x, 100 * study.knn, color="#2f6fb3", linewidth=1, linestyle=":")
        twin.plot(x, study.series.dse, color="#d9601a", linewidth=1.3)
        twin.plot(
            x[study.series.best], study.series.dse[study.series.best], "*", color="#d9601a", markersize=9
        )
        alarm = first_alarm(study.series)
        if alarm is not None:
            axis.axvline(alarm, color="#b3261e", linewidth=1, linestyle="--")
        axis.set_title(f"{study.name}, tau {tau(study.series.dse, study.linear):+.2f}", fontsize=9)
        for side in (axis, twin):
            side.tick_params(labelsize=7)
    figure.supxlabel("epoch", fontsize=9)
    figure.suptitle(
        "mIoU in percent (blue, left; dotted: nearest neighbours) and DSE (orange, right; star: its best; "
        "dashed red: alert)",
        fontsize=9,
    )
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, dpi=75)
    pyplot.close(figure)
    with Image.open(stream) as picture:  # a third of the size in 64 colours
        picture.convert("RGB").quantize(64).save(target, optimize=True)


def main(setting: str = "cpu", results: Path = RESULTS, figures: Path | None = None) -> None:
    """Print all tables as Markdown; draw the figure.

    Args:
        setting: ``cpu``, ``falls`` or ``large``.
        results: folder of the CSV files.
        figures: folder for ``validation-SETTING.png``; None draws nothing.
    """
    files, unfinished = finished(results / setting, SETTINGS[setting].checkpoints)
    if not files:
        raise SystemExit(f"{results / setting}: no finished run; run benchmarks/study.py first")
    studies = [load(path) for path in files]
    degraded = [s.name for s in studies if s.linear.max() - s.linear[-1] >= CLEAR_FALL]
    falls = statistics.median(100 * (s.linear.max() - s.linear[-1]) for s in studies)
    print(f"{len(studies)} runs, {sum(len(s.linear) for s in studies)} checkpoints.")
    print(
        f"Linear mIoU ends a point or more below its best in {len(degraded)}: {', '.join(degraded) or 'none'}"
    )
    print(f"(median fall {falls:.1f} points).")
    if unfinished:
        print(f"Not finished, and so left out: {', '.join(unfinished)}.")
    for title, lines in (
        ("Kendall's tau with linear mIoU", tau_table(studies)),
        ("Kendall's tau with nearest-neighbour mIoU", tau_table(studies, "knn")),
        ("Linear mIoU kept, percent", choice_table(studies)),
        ("Alerts", alarm_table(studies)),
    ):
        print(f"\n### {title}\n")
        print("\n".join(lines))
    print(f"\n{across_runs(studies)}")
    if figures is not None:
        draw(studies, figures / f"validation-{setting}.png")


if __name__ == "__main__":
    tyro.cli(main)
