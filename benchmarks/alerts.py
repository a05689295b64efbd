"""What the alert rules and the selection do on published runs and on simulated ones. No GPU, no network.

    python benchmarks/alerts.py [--runs 1000] [--margin 0.2] [--threshold 3.4]

Prints five tables; docs/alerts.md quotes them. The published runs (arXiv 2510.17299, results figure) are
read from tests/data/curves; DSE and mIoU of each are rescaled to [0, 1] over the run.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dse_monitor.alerts.parameters import Rules
from dse_monitor.alerts.selection import before_alarm
from dse_monitor.alerts.trace import Trace
from dse_monitor.metric.components import Components
from dse_monitor.runs.record import Evaluation, Source
from dse_monitor.runs.series import Series

CURVES = Path(__file__).parents[1] / "tests" / "data" / "curves" / "paper_figure.json"
DEGRADED = ("DINO", "BYOL", "iBOT", "Mugs")
HEALTHY = ("DenseCL", "SimSiam", "VICRegL", "MAE")
MARGINS = (0.05, 0.075, 0.10, 0.15, 0.20, 0.25, 0.30, 0.40, 0.50, 0.60)
# checkpoints, checkpoints, errors, checkpoints
RAMP_START, RAMP_LENGTH, RAMP_DROP, RAMP_RUN = 40, 10, 5.0, 60

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One published run."""

    name: str
    epoch: Floats
    dse: Floats
    miou: Floats


def evaluations(epoch: Floats, dse: Floats, se: float = math.nan) -> list[Evaluation]:
    """A DSE curve as evaluations."""
    return [
        Evaluation(
            status="scored",
            source=Source(path=f"{e:g}", epoch=float(e)),
            components=Components(
                m_inter=float(v),
                m_intra_image=0.0,
                m_intra_batch=0.0,
                m_dim=0.0,
                m_dim_se=0.0,
                separability_se=se,
                separability_dim_cov=0.0,
            ),
            seq=k,
        )
        for k, (e, v) in enumerate(zip(epoch, dse, strict=True), 1)
    ]


def first_alarm(epoch: Floats, dse: Floats, se: float, rules: Rules) -> int | None:
    """Index of the checkpoint at which the first alarm is raised, judged online."""
    trace = Trace(rules)
    trace.update(evaluations(epoch, dse, se))
    return next((k for k, phase in enumerate(trace.phases) if phase.status == "firing"), None)


def published() -> list[Run]:
    curves = json.loads(CURVES.read_text())
    return [
        Run(name, *(np.array(curves[name][key], float) for key in ("epoch", "dse", "miou")))
        for name in DEGRADED + HEALTHY
    ]


def lost_share(run: Run, at: int) -> float:
    """Quality (mIoU) lost when the alarm comes, as a share of what the run loses from its best to its end."""
    return float((run.miou[: at + 1].max() - run.miou[at]) / (run.miou.max() - run.miou[-1]))


def table_published(runs: Sequence[Run], rules: Rules, repeats: int) -> None:
    print(f"\n1. Published runs, margin {rules.margin:g}, threshold {rules.threshold:g}")
    print("   'noise': share of runs that fire, and epochs (5 %, median, 95 %), with Gaussian noise of that")
    print("   standard deviation added, the error given (+) or not (-); range of DSE is 1")
    rng = np.random.default_rng(0)
    cases = [(sd, given) for sd in (0.01, 0.02) for given in (True, False)]
    names = [f"noise {sd:g}{'+' if given else '-'}" for sd, given in cases]
    head = "  ".join(f"{name:>19}" for name in names)
    print(f"{'run':<8} {'fires':>6} {'mIoU lost by then':>18}  {head}")
    for run in runs:
        at = first_alarm(run.epoch, run.dse, math.nan, rules)
        cells = []
        for sd, given in cases:
            fired = [
                first_alarm(
                    run.epoch, run.dse + sd * rng.normal(size=len(run.dse)), sd if given else math.nan, rules
                )
                for _ in range(repeats)
            ]
            epochs = [run.epoch[k] for k in fired if k is not None]
            spread = "/".join(f"{e:.0f}" for e in np.percentile(epochs, [5, 50, 95])) if epochs else ""
            cells.append(f"{len(epochs) / repeats:>6.1%} {spread:>12}")
        lost = "" if at is None else f"{lost_share(run, at):.0%}"
        print(
            f"{run.name:<8} {'-' if at is None else f'{run.epoch[at]:.0f}':>6} {lost:>18}  {'  '.join(cells)}"
        )


def table_margins(runs: Sequence[Run], rules: Rules) -> dict[float, dict[str, bool]]:
    """The trade of the margin; returns for each margin which runs are judged rightly."""
    print("\n2. Margin, noise-free and with noise 0.02 (20 runs each, error not given)")
    columns = (("margin", 6), ("missed", 7), ("false", 6), ("missed, noisy", 14), ("false, noisy", 13))
    print(" ".join(f"{name:>{width}}" for name, width in columns), " median mIoU lost")
    right: dict[float, dict[str, bool]] = {}
    for margin in MARGINS:
        chosen = replace(rules, margin=margin)
        rng = np.random.default_rng(1)
        at = {run.name: first_alarm(run.epoch, run.dse, math.nan, chosen) for run in runs}
        noisy = {
            run.name: np.mean(
                [
                    first_alarm(run.epoch, run.dse + 0.02 * rng.normal(size=len(run.dse)), math.nan, chosen)
                    is not None
                    for _ in range(20)
                ]
            )
            for run in runs
        }
        right[margin] = {
            run.name: (at[run.name] is not None) == (run.name in DEGRADED)
            and noisy[run.name] == (run.name in DEGRADED)
            for run in runs
        }
        lost = [
            lost_share(run, k) for run in runs if run.name in DEGRADED and (k := at[run.name]) is not None
        ]
        missed, false = sum(at[n] is None for n in DEGRADED), sum(at[n] is not None for n in HEALTHY)
        missed_noisy = 1 - np.mean([noisy[n] for n in DEGRADED])
        false_noisy = np.mean([noisy[n] for n in HEALTHY])
        print(
            f"{margin:>6.3f} {missed:>7} {false:>6} {missed_noisy:>14.1%} {false_noisy:>13.1%} "
            f"{np.median(lost):>17.0%}"
        )
    return right


def table_left_out(runs: Sequence[Run], right: dict[float, dict[str, bool]]) -> None:
    print("\n3. Leave one run out: the margin in the (geometric) middle of those right on the other seven")
    print(f"{'left out':<9} {'right on the others':>20} {'chosen':>7} {'right on it':>12}")
    for run in runs:
        fine = [m for m in MARGINS if all(ok for name, ok in right[m].items() if name != run.name)]
        middle = math.sqrt(fine[0] * fine[-1])
        chosen = min(fine, key=lambda m: abs(math.log(m / middle)))
        verdict = "yes" if right[chosen][run.name] else "NO"
        print(f"{run.name:<9} {f'{fine[0]:g} to {fine[-1]:g}':>20} {chosen:>7g} {verdict:>12}")


def table_simulation(rules: Rules, runs: int) -> None:
    print(f"\n4. Simulation, {runs:,} runs each, noise of 1 standard error")
    print(
        "   stationary: 100 checkpoints. drop: 40 stationary, then 5 errors down over 10, then 10 more below"
    )
    print("   delay: checkpoints after the first one that is lower; at 9 the drop is complete")
    print(
        f"{'error':<8} {'false alarms':>13} {'detected':>9} {'within the drop':>16} {'delay 5/50/95 %':>16}"
    )
    level = np.zeros(RAMP_RUN)
    level[RAMP_START:] = -RAMP_DROP * np.minimum(np.arange(1, RAMP_RUN - RAMP_START + 1) / RAMP_LENGTH, 1)
    for given in (True, False):
        rng = np.random.default_rng(2)
        se = 1.0 if given else math.nan
        flat, ramp = np.arange(1.0, 101.0), np.arange(1.0, RAMP_RUN + 1)
        false = np.mean([first_alarm(flat, rng.normal(size=100), se, rules) is not None for _ in range(runs)])
        found = [first_alarm(ramp, level + rng.normal(size=RAMP_RUN), se, rules) for _ in range(runs)]
        delay = np.array([k - RAMP_START for k in found if k is not None and k >= RAMP_START])
        spread = "/".join(f"{d:.0f}" for d in np.percentile(delay, [5, 50, 95]))
        print(
            f"{'given' if given else 'unknown':<8} {false:>13.2%} {len(delay) / runs:>9.1%} "
            f"{np.sum(delay < RAMP_LENGTH) / runs:>16.1%} {spread:>16}"
        )
    print(f"best possible with all known, 2 % false alarms: median delay {best_possible(runs):.0f}")


def best_possible(runs: int) -> float:
    """Median delay of a detector that knows level, noise and shape of the drop, at 2 % false alarms.

    Shiryaev-Roberts: the sum over onsets of the likelihood ratio of a drop since then.
    """
    rng = np.random.default_rng(3)

    def statistic(y: Floats) -> Floats:
        total = np.zeros(y.shape)
        for length in range(1, RAMP_LENGTH + 1):
            drop = -RAMP_DROP * np.arange(1, length + 1) / RAMP_LENGTH
            for end in range(length - 1, y.shape[1]):
                window = y[:, end - length + 1 : end + 1]
                total[:, end] += np.exp(window @ drop - drop @ drop / 2)
        return total

    threshold = np.quantile(statistic(rng.normal(size=(10 * runs, 100))).max(1), 0.98)
    level = np.zeros(RAMP_RUN)
    level[RAMP_START:] = -RAMP_DROP * np.minimum(np.arange(1, RAMP_RUN - RAMP_START + 1) / RAMP_LENGTH, 1)
    over = statistic(level + rng.normal(size=(runs, RAMP_RUN))) > threshold
    first = over.argmax(1)[over.any(1)]
    return float(np.median(first[first >= RAMP_START] - RAMP_START))


def table_selection(runs: Sequence[Run], rules: Rules) -> None:
    print("\n5. Selection: mIoU of what is kept, as a share of the run's best (both rescaled to [0, 1])")
    rules_of_choice: dict[str, Callable[[Series], Sequence[int]]] = {
        "released": lambda series: series.candidates,
        "before-alarm": lambda series: before_alarm(series, rules),
    }
    print(
        f"{'run':<8} {'last':>6} "
        + " ".join(f"{f'{n}: top-1':>20} {'best of 3':>10}" for n in rules_of_choice)
    )
    table = []
    for run in runs:
        series = Series.from_evaluations(evaluations(run.epoch, run.dse))
        row = [run.miou[-1]]
        for choose in rules_of_choice.values():
            kept = [run.miou[k] for k in choose(series)]
            row += [kept[0], max(kept)]
        table.append(np.array(row) / run.miou.max())
    table.append(np.mean(table, 0))
    for name, row in zip([*(run.name for run in runs), "mean"], table, strict=True):
        print(
            f"{name:<8} {row[0]:>6.1%} "
            + " ".join(f"{a:>20.1%} {b:>10.1%}" for a, b in row[1:].reshape(-1, 2))
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs of each kind")
    parser.add_argument("--margin", type=float, default=Rules.margin)
    parser.add_argument("--threshold", type=float, default=Rules.threshold)
    arguments = parser.parse_args()
    rules = Rules(margin=arguments.margin, threshold=arguments.threshold)
    runs = published()
    table_published(runs, rules, max(arguments.runs // 10, 1))
    table_left_out(runs, table_margins(runs, rules))
    table_simulation(rules, arguments.runs)
    table_selection(runs, rules)


if __name__ == "__main__":
    main()
