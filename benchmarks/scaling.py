"""How time and memory grow: the metric with images, tokens, width and clusters; a run with its checkpoints.

    python benchmarks/scaling.py [--only metric|run] [--repeats 3] [--largest 100000]

Every size is measured in a process of its own, on one thread, in processor seconds (a busy machine then lies
less). Growth is the exponent between the two largest sizes: 1 is linear. Writes results/scaling.csv beside
this file and draws docs/scaling.png (needs matplotlib; the tab needs Chromium and playwright).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, DRAWING = HERE / "results" / "scaling.csv", HERE.parent / "docs" / "scaling.png"
COLUMNS = ("part", "axis", "size", "measure", "value")
BASE = {"images": 128, "tokens": 196, "width": 384, "clusters": 24}
AXES = {
    "images": (64, 128, 256, 512, 1024),
    "tokens": (49, 98, 196, 392, 784, 1568),
    "width": (96, 192, 384, 768, 1536),
    "clusters": (6, 12, 24, 48, 96),
}
CHECKPOINTS = (10, 100, 1_000, 10_000, 100_000)
Row = tuple[str, str, int, str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("metric", "run"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--largest", type=int, default=CHECKPOINTS[-1], help="checkpoints of the longest run")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        cell = json.loads(options.cell)
        print(json.dumps(metric_cell(**cell) if "images" in cell else run_cell(**cell)))
        return
    rows = [row for row in read() if options.only and row[0] != options.only]
    if options.only != "run":
        for axis, sizes in AXES.items():
            for size in sizes:
                found = in_process({**BASE, axis: size, "repeats": options.repeats})
                rows += [("metric", axis, size, measure, value) for measure, value in found.items()]
    if options.only != "metric":
        for size in (size for size in CHECKPOINTS if size <= options.largest):
            found = in_process({"checkpoints": size, "repeats": options.repeats})
            rows += [("run", "checkpoints", size, measure, value) for measure, value in found.items()]
    write(rows)
    print_tables(rows)
    draw(rows)


def in_process(cell: dict[str, int]) -> dict[str, float]:
    """Measure one size in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), "--cell", json.dumps(cell)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{cell}: {done.stderr[-2000:]}")
    print(cell, done.stdout.splitlines()[-1], flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of this process, median."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def resident(field: str = "VmRSS") -> float:
    """Memory of this process in MB; ``VmHWM`` is the most it ever was."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


# The metric ------------------------------------------------------------------------------------------------


def metric_cell(images: int, tokens: int, width: int, clusters: int, repeats: int) -> dict[str, float]:
    """Seconds and extra memory of the metric and of the regulariser (32 images) at one size."""
    import torch
    from metric import features_of

    from dse_monitor.metric import DSERegularizer, measure

    torch.set_num_threads(1)
    measure(features_of(16, 49, 64))  # what is loaded on first use is not what grows
    features = features_of(images, tokens, width)
    before = resident()
    measure(features, global_clusters=clusters)
    extra = resident("VmHWM") - before
    some = features[:32].clone().requires_grad_()
    return {
        "metric, s": median_seconds(lambda: measure(features, global_clusters=clusters), repeats),
        "metric, extra MB": max(extra, 0.0),
        "features, MB": features.nbytes / 2**20,
        "regulariser, s": median_seconds(
            lambda: DSERegularizer(global_clusters=clusters)(some).backward(), repeats
        ),
    }


# A run -----------------------------------------------------------------------------------------------------


def run_cell(checkpoints: int, repeats: int) -> dict[str, float]:
    """What a run with so many scored checkpoints costs: to read, to watch, to publish and to look at."""
    from dse_monitor.runs import ledger

    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "exp"
        # Filled by another process, so that making it leaves nothing in the memory that is measured.
        child = os.fork()
        if child == 0:
            fill(run, checkpoints)
            os._exit(0)
        os.waitpid(child, 0)
        found = {"ledger, MB": (run / "dse" / ledger.NAME).stat().st_size / 2**20}
        found |= watched(run)
        found["ledger read, s"] = median_seconds(lambda: ledger.read(run / "dse"), repeats)
        events = next((run / "dse").glob("events.out.*"))
        found["event data, MB"] = events.stat().st_size / 2**20
        found |= in_tab(Path(place), checkpoints, repeats)
    return found


def fill(run: Path, checkpoints: int) -> None:
    """A ledger of a run whose checkpoints were all rotated away."""
    from watch import evaluation

    from dse_monitor.runs.ledger import Ledger
    from dse_monitor.runs.record import to_json

    run.mkdir(parents=True)
    book = Ledger.open(run / "dse")
    for number in range(1, checkpoints + 1):
        record = dataclasses.replace(evaluation(f"checkpoint{number:06d}.pth", number), seq=number)
        key = [1, number, 1000, number, number]
        content = {"seq": number, "key": key, "request": request(run), "evaluation": to_json(record)}
        book.append("scored", content, sync=False)
    book.close()


def options_of(run: Path) -> Any:
    from dse_monitor.evaluation.config import EvaluationConfig
    from dse_monitor.watch.options import WatchOptions

    config = EvaluationConfig(images=Path("none"))
    return WatchOptions(runs=(run,), config=config, maps=False, settle_seconds=0.0)


def request(run: Path) -> str:
    return options_of(run).request


def watched(run: Path) -> dict[str, float]:
    """Start of a watcher, its memory, and what one more checkpoint costs it (mean of fifty)."""
    from watch import Stub, write_checkpoint

    from dse_monitor.watch.console import Console
    from dse_monitor.watch.monitor import Monitor

    more = 50
    with open(os.devnull, "w") as silence:
        begin = time.process_time()
        monitor = Monitor(options_of(run), Console(silence, "plain"), make_worker=Stub)
        monitor.step()
        start = time.process_time() - begin
        memory = resident()
        begin = time.process_time()
        for number in range(more):
            write_checkpoint(run / f"checkpoint{900_000 + number}.pth")
        (watched_run,) = monitor.runs.values()
        before = watched_run.history.count("scored")
        while watched_run.history.count("scored") < before + more:
            monitor.step()
            time.sleep(0.01)
        each = (time.process_time() - begin) / more
        monitor.close()
    return {"start, s": start, "watcher, MB": memory, "one more checkpoint, ms": 1e3 * each}


def in_tab(logdir: Path, checkpoints: int, repeats: int) -> dict[str, float]:
    """Milliseconds of the tab, TensorBoard's fast loader; nothing where there is no Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        return {}
    from playwright.sync_api import sync_playwright
    from tab import CHROMIUM_FLAGS, one_run

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        found = one_run(browser, logdir, True, checkpoints + 50, repeats)
        browser.close()
    names = ("points response", "first paint after the data", "zoom")
    return {f"tab: {name}, ms": found[name] for name in names}


# Results ---------------------------------------------------------------------------------------------------


def read() -> list[Row]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return [
            (row["part"], row["axis"], int(row["size"]), row["measure"], float(row["value"]))
            for row in csv.DictReader(file)
        ]


def write(rows: list[Row]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows((*row[:4], f"{row[4]:.6g}") for row in rows)


def lines_of(rows: list[Row]) -> Iterator[tuple[str, str, str, dict[int, float]]]:
    """(part, axis, measure, value by size) in the order of measuring."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for part, axis, size, measure, value in rows:
        found.setdefault((part, axis, measure), {})[size] = value
    for names, values in found.items():
        yield *names, dict(sorted(values.items()))


def growth(values: dict[int, float]) -> float:
    """Exponent between the two largest sizes; nan where nothing was used."""
    (small, before), (large, after) = list(values.items())[-2:]
    if before <= 0 or after <= 0:
        return math.nan
    return math.log(after / before) / math.log(large / small)


def print_tables(rows: list[Row]) -> None:
    for part, axis, measure, values in lines_of(rows):
        if measure == "features, MB":
            continue
        sizes = "  ".join(f"{size:,}: {value:.3g}" for size, value in values.items())
        print(f"{part:7} {axis:12} {measure:34} {sizes}   growth {growth(values):.2f}")


def draw(rows: list[Row]) -> None:
    """One small chart for each axis and unit, with a line of slope one through the largest size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    charts: dict[tuple[str, str], list[tuple[str, dict[int, float]]]] = {}
    for _, axis, measure, values in lines_of(rows):
        name, _, unit = measure.rpartition(", ")
        if name != "features":
            charts.setdefault((axis, unit.removeprefix("extra ")), []).append((name, values))
    columns = 4
    figure, places = pyplot.subplots(
        -(-len(charts) // columns), columns, figsize=(14, 3.1 * -(-len(charts) // columns)), squeeze=False
    )
    for place, ((axis, unit), lines) in zip(places.flat, charts.items(), strict=False):
        for name, values in lines:
            (line,) = place.loglog(list(values), list(values.values()), marker="o", markersize=3, label=name)
            last = max(values)
            linear = [values[last] * size / last for size in values]
            place.loglog(list(values), linear, linestyle=":", linewidth=0.8, color=line.get_color())
        place.set_xlabel(axis)
        place.set_ylabel(unit)
        place.legend(fontsize=7, frameon=False)
    for place in list(places.flat)[len(charts) :]:
        place.set_visible(False)
    figure.suptitle("Time and memory against size; dotted: linear through the largest", fontsize=10)
    figure.tight_layout()
    figure.savefig(DRAWING, dpi=70, metadata={"Software": None})


if __name__ == "__main__":
    main()
