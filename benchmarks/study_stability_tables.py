"""Tables and the figure of ``study_stability.py``, from its CSV file and the study's.

    python benchmarks/study_stability_tables.py [--setting falls] [--figures docs]

DSE is at the adaptive lambda of the study's run throughout, in clusters and sizes at that of the run measured
so. Scatter is the root mean square over checkpoints of a standard deviation over measurements.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from dse_monitor.probe.run import kendall_tau
from dse_monitor.runs.series import adaptive_lambda

if __package__:
    from benchmarks.study import RESULTS, RUNS, SETTINGS, read
    from benchmarks.study_tables import load, mean_interval
else:
    from study import RESULTS, RUNS, SETTINGS, read  # pyright: ignore[reportImplicitRelativeImport]
    from study_tables import load, mean_interval  # pyright: ignore[reportImplicitRelativeImport]

Row = dict[str, str]
Key = tuple[str, ...]
Floats = NDArray[np.float64]
PRINTED = 1.96  # standard errors on either side: a 95 % interval


def by(rows: Iterable[Row], *names: str) -> dict[Key, list[Row]]:
    """Rows with equal values of these columns, in the order of the file."""
    found: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[name] for name in names)].append(row)
    return found


def dse(rows: Iterable[Row], lam: float) -> Floats:
    """DSE of each row [n]."""
    return np.array([float(row["separability"]) + lam * float(row["m_dim"]) for row in rows])


def printed(rows: Iterable[Row], lam: float) -> Floats:
    """Standard error of DSE as the product prints it [n]."""
    parts = [[float(row[name]) for name in ("separability_se", "m_dim_se", "covariance")] for row in rows]
    s, d, covariance = np.array(parts).T
    return np.sqrt(np.maximum(s**2 + lam**2 * d**2 + 2 * lam * covariance, 0))


def rms(values: Iterable[float]) -> float:
    """Root of the mean square."""
    return math.sqrt(float(np.mean(np.square(list(values)))))


def images_table(rows: list[Row], lambdas: dict[str, float], spans: dict[str, float]) -> list[str]:
    """Scatter of DSE over disjoint samples of n images, beside the standard error it is printed with.

    Args:
        rows: of the experiment ``images``.
        lambdas: of each run.
        spans: highest less lowest DSE of each run over its checkpoints.
    """
    lines = [
        "| images | scatter | printed error | differences within 95 % | scatter / span of the run "
        "| M_dim less that of twice the images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    means = {
        key: np.mean([float(row["m_dim"]) for row in group])
        for key, group in by(rows, "run", "epoch", "images").items()
    }
    for (count,), some in sorted(by(rows, "images").items(), key=lambda item: int(item[0][0])):
        scatter, errors, within, share, shift = [], [], [], [], []
        for (run, epoch), group in by(some, "run", "epoch").items():
            lam = lambdas[run]
            values, error = dse(group, lam), printed(group, lam)
            scatter.append(float(values.std(ddof=1)))
            share.append(scatter[-1] / spans[run])
            errors.append(rms(error))
            for a, b in itertools.combinations(range(len(group)), 2):
                within.append(abs(values[a] - values[b]) < PRINTED * math.hypot(error[a], error[b]))
            larger = means.get((run, epoch, str(2 * int(count))))
            if larger is not None:
                shift.append(float(means[run, epoch, count] - larger))
        moved = f"{np.mean(shift):+.4f}" if shift else ""
        lines.append(
            f"| {int(count):,} | {rms(scatter):.4f} | {rms(errors):.4f} | {100 * np.mean(within):.0f} % "
            f"| {100 * rms(share):.0f} % | {moved} |"
        )
    return lines


def seeds_table(rows: list[Row], lambdas: dict[str, float]) -> list[str]:
    """Scatter of DSE over seeds of clustering and permutation, alone and in differences of checkpoints."""
    lines = [
        "| images | scatter over seeds | printed error | difference, one seed | difference, two seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (count,), some in sorted(by(rows, "images").items(), key=lambda item: int(item[0][0])):
        scatter, errors, same, other = [], [], [], []
        for (run,), group in by(some, "run").items():
            lam = lambdas[run]
            columns = [dse(own, lam) for own in by(group, "epoch").values()]
            scatter += [float(column.std(ddof=1)) for column in columns]
            errors += [rms(printed(own, lam)) for own in by(group, "epoch").values()]
            for a, b in itertools.pairwise(columns):
                same.append(float((a - b).std(ddof=1)))
                other.append(math.hypot(a.std(ddof=1), b.std(ddof=1)))
        cells = " | ".join(f"{rms(values):.4f}" for values in (scatter, errors, same, other))
        lines.append(f"| {int(count):,} | {cells} |")
    return lines


def pairing_table(rows: list[Row], lambdas: dict[str, float]) -> list[str]:
    """Scatter of the difference of two checkpoints on the same and on different images."""
    lines = ["| images | difference, same images | difference, other images |", "| --- | --- | --- |"]
    for (count,), some in sorted(by(rows, "images").items(), key=lambda item: int(item[0][0])):
        same, other = [], []
        for (run,), group in by(some, "run").items():
            columns = [dse(own, lambdas[run]) for own in by(group, "epoch").values()]
            for a, b in itertools.pairwise(columns):
                same.append(float((a - b).std(ddof=1)))
                other.append(math.hypot(a.std(ddof=1), b.std(ddof=1)))
        lines.append(f"| {int(count):,} | {rms(same):.4f} | {rms(other):.4f} |")
    return lines


def choices_table(
    rows: list[Row], names: tuple[str, ...], truth: dict[str, dict[int, float]], title: Callable[[Key], str]
) -> list[str]:
    """Kendall's tau of DSE with linear mIoU, by run and choice, and the mean over runs.

    Args:
        rows: of an experiment that measured every checkpoint.
        names: columns that make the choice.
        truth: linear mIoU of each run by epoch.
        title: heading of a choice.
    """
    choices = by(rows, *names)
    runs = list(dict.fromkeys(row["run"] for row in rows))
    found: dict[Key, list[float]] = {}
    for key, some in choices.items():
        own = by(some, "run")
        found[key] = [_tau(own[(run,)], truth[run]) if (run,) in own else math.nan for run in runs]
    lines = [f"| choice | {' | '.join(runs)} | mean |", "| --- " * (len(runs) + 2) + "|"]
    for key, taus in found.items():
        cells = " | ".join("" if math.isnan(value) else f"{value:+.2f}" for value in taus)
        mean = "{:+.2f} ({:+.2f} to {:+.2f})".format(*mean_interval(taus))
        lines.append(f"| {title(key)} | {cells} | {mean} |")
    return lines


def _tau(rows: list[Row], truth: dict[int, float]) -> float:
    separability = [float(row["separability"]) for row in rows]
    lam = adaptive_lambda(separability, [float(row["m_dim"]) for row in rows])
    return kendall_tau(dse(rows, lam), [truth[int(row["epoch"])] for row in rows])


def main(setting: str = "falls", results: Path = RESULTS, figures: Path | None = None) -> None:
    """Print all tables as Markdown; draw the figure.

    Args:
        setting: of the study.
        results: folder of the CSV files.
        figures: folder for ``stability.png``; None draws nothing.
    """
    rows = read(results / f"study_stability_{setting}.csv")
    if not rows:
        raise SystemExit(f"{results}: no measurements; run benchmarks/study_stability.py first")
    experiments = by(rows, "experiment")
    studies = {
        name: load(results / setting / f"{name}.csv") for name in dict.fromkeys(r["run"] for r in rows)
    }
    lambdas = {name: study.series.lam for name, study in studies.items()}
    spans = {name: float(np.ptp(study.series.dse)) for name, study in studies.items()}
    truth = {
        name: {round(x): float(y) for x, y in zip(study.series.x, study.linear, strict=True)}
        for name, study in studies.items()
    }
    tables: dict[str, list[str]] = {}
    if samples := experiments.get(("images",)):
        tables["Images"] = images_table(samples, lambdas, spans)
        tables["The same images for both checkpoints"] = pairing_table(samples, lambdas)
    if seeds := experiments.get(("seeds",)):
        tables["Seeds"] = seeds_table(seeds, lambdas)
    if clusters := experiments.get(("clusters",)):
        tables["Clusters"] = choices_table(
            clusters, ("local", "global"), truth, lambda key: f"{key[0]} per image, {key[1]} per group"
        )
    if sizes := experiments.get(("sizes",)):
        tables["Image size, as a share of the run's"] = size_table(sizes, truth, setting)
    for title, lines in tables.items():
        print(f"\n### {title}\n")
        print("\n".join(lines))
    if figures is not None and samples:
        draw(samples, lambdas, figures / "stability.png")


def size_table(rows: list[Row], truth: dict[str, dict[int, float]], setting: str) -> list[str]:
    """As `choices_table`, by the side of the images as a share of the side a run was measured at."""
    usual = {run.title: run.measured_at * SETTINGS[setting].size for run in RUNS}
    several = {run for (run,), own in by(rows, "run").items() if len(by(own, "size")) > 1}
    shares = [
        {**row, "size": f"{float(row['size']) / usual[row['run']]:g}"}
        for row in rows
        if row["run"] in several
    ]
    return choices_table(shares, ("size",), truth, lambda key: f"{key[0]} x")


def draw(rows: list[Row], lambdas: dict[str, float], target: Path) -> None:
    """Scatter against images, each run a line, and the error that is printed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5.2, 3.4))
    for (run,), own in by(rows, "run").items():
        groups = sorted(by(own, "images").items(), key=lambda item: int(item[0][0]))
        counts = [int(count) for (count,), _ in groups]
        scatter, errors = [], []
        for _, group in groups:
            epochs = by(group, "epoch").values()
            scatter.append(rms(float(dse(some, lambdas[run]).std(ddof=1)) for some in epochs))
            errors.append(rms(float(e) for some in epochs for e in printed(some, lambdas[run])))
        (line,) = axis.loglog(counts, scatter, "o-", markersize=3, linewidth=1, label=run)
        axis.loglog(counts, errors, ":", linewidth=1, color=line.get_color())
    axis.set_xlabel("images")
    axis.set_ylabel("scatter of DSE (dotted: printed error)")
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, dpi=80)
    pyplot.close(figure)


if __name__ == "__main__":
    tyro.cli(main)
