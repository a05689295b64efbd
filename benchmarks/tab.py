"""How fast the DSE tab is: one table, on synthetic runs in real TensorBoards and a real headless Chromium.

    python benchmarks/tab.py [--checkpoints 10000] [--runs 100] [--per-run 1000] [--repeat 5] [--folder RUNS]

One run with many checkpoints, and many runs with fewer, with both of TensorBoard's data loaders. Times are
medians in milliseconds. Needs Chromium and playwright (the test extra); nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright
from synthetic_runs import write_run

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

# What has to hold, in milliseconds; printed beside what was measured.
LIMITS = {
    "points response": 200,
    "first paint after the data": 500,
    "zoom": 50,
    "cursor, one move": 50,
    "lambda, one change": None,
    "run table, from opening the tab": 1500,
}


@contextmanager
def tensorboard(logdir: Path, fast: bool) -> Iterator[str]:
    """A TensorBoard over a folder; yields the address of the tab's frame."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--load_fast", str(fast).lower()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}/data"
    finally:
        process.terminate()
        process.wait()


def wait_for(claim: Callable[[], Any]) -> None:
    """Ask until a claim is true; connection errors count as false."""
    while True:
        try:
            if claim():
                return
        except OSError:
            pass
        time.sleep(0.2)


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address) as reply:
        return reply.read()


def open_tab(browser: Browser, address: str, fragment: str = "") -> Page:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(f"{address}/plugin_entry.html?name=dse#dse{fragment}")
    page.locator('body[data-ready="1"]').wait_for(timeout=120_000)
    return page


TIMED = """async (action) => {
  const app = window.__dse.app;
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const actions = {
    zoom: async () => {
      const end = app.charts.scene.range[1];
      app.zoom([end * 0.2, end * 0.6]);
    },
    cursor: async () => {
      app.charts.hovered = app.charts.plots[0];
      app.charts.plots[0].u.setCursor({left: 100 + 500 * Math.random(), top: 60});
    },
    lambda: async () => { app.set({lambda: Math.random()}); },
    points: async () => {
      const query = new URLSearchParams({run: app.view.focus});
      await (await fetch(`points?${query}`, {cache: 'no-store'})).arrayBuffer();
    },
    rebuild: async () => { app.charts.shape = ''; app.draw(); await painted(); },
  };
  const start = performance.now();
  await actions[action]();
  return performance.now() - start;
}"""


def one_run(browser: Browser, logdir: Path, fast: bool, checkpoints: int, repeat: int) -> dict[str, float]:
    """Times of a run with many checkpoints."""
    with tensorboard(logdir, fast) as address:
        wait_for(lambda: len(fetch(f"{address}/plugin/dse/points?run=exp/dse")) > checkpoints * 160)
        found: dict[str, list[float]] = {}
        for _ in range(repeat):
            page = open_tab(browser, address)
            assert page.evaluate("window.__dse.summary().runs[0].rows") == checkpoints
            # very long lines are thinned for drawing
            assert 0 < page.evaluate("window.__dse.summary().panels[0].rows") <= checkpoints
            timings = page.evaluate("window.__dse.summary().timings")
            measured = {"first paint after the data": timings["drawn"] - timings["arrived"]}
            for name, action in (
                ("points response", "points"),
                ("zoom", "zoom"),
                ("cursor, one move", "cursor"),
                ("lambda, one change", "lambda"),
            ):
                measured[name] = statistics.median(page.evaluate(TIMED, action) for _ in range(5))
            measured["first paint after the data"] = max(
                measured["first paint after the data"], page.evaluate(TIMED, "rebuild")
            )
            for name, value in measured.items():
                found.setdefault(name, []).append(value)
            page.close()
        return {name: statistics.median(values) for name, values in found.items()}


def many_runs(browser: Browser, logdir: Path, fast: bool, runs: int, repeat: int) -> dict[str, float]:
    """Time until the table of many runs stands."""
    with tensorboard(logdir, fast) as address:
        wait_for(lambda: fetch(f"{address}/plugin/dse/runs").count(b'"n_written"') == runs)
        wait_for(lambda: len(fetch(f"{address}/plugin/dse/points?run=run{runs - 1:03d}/dse")) > 1000 * 100)
        times = []
        for _ in range(repeat):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            start = time.perf_counter()
            page.goto(f"{address}/plugin_entry.html?name=dse")
            page.wait_for_function(f"document.querySelectorAll('.runs tbody tr').length === {runs}")
            times.append(1000 * (time.perf_counter() - start))
            page.close()
        return {"run table, from opening the tab": statistics.median(times)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--per-run", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the runs here, and use those of an earlier call")
    parser.add_argument("--only-write", action="store_true", help="write the runs and measure nothing")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("benchmarks/tab.py needs Chromium (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = options.folder or Path(temporary)
        single, many = folder / "single", folder / "many"
        if not single.exists():
            write_run(single / "exp", checkpoints=options.checkpoints, every=0.1)
        for index in range(options.runs):
            if not (many / f"run{index:03d}").exists():
                write_run(
                    many / f"run{index:03d}",
                    checkpoints=options.per_run,
                    every=0.1,
                    seed=index,
                    loss=index % 10 == 0,
                )
        if options.only_write:
            return
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        columns = {}
        for name, fast in (("load_fast true", True), ("load_fast false", False)):
            columns[name] = one_run(browser, single, fast, options.checkpoints, options.repeat)
            columns[name] |= many_runs(browser, many, fast, options.runs, options.repeat)
        browser.close()
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, headless Chromium")
    sizes = f"{options.checkpoints:,} checkpoints in one run; {options.runs} runs x {options.per_run:,}"
    print(f"{sizes}; medians in ms")
    print(f"{'':34}{'limit':>8}" + "".join(f"{name:>18}" for name in columns))
    for name, limit in LIMITS.items():
        values = "".join(f"{column[name]:>18.0f}" for column in columns.values())
        print(f"{name:34}{limit or '-':>8}{values}")


if __name__ == "__main__":
    main()
