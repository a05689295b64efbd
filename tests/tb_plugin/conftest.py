"""Real TensorBoards over synthetic runs, and a real browser to look at them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADERS = ("fast", "python")
PATIENCE = 600.0  # s to wait for a server: beyond the limit of pytest, which decides

# Browsers ask for an icon by themselves; TensorBoard's own style sheet asks for fonts outside a path prefix.
NOT_OURS = re.compile(r"/(favicon\.ico|font-roboto/.*)$")

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _load_synthetic():
    path = ROOT / "benchmarks" / "synthetic_runs.py"
    spec = importlib.util.spec_from_file_location("synthetic_runs", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["synthetic_runs"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def synthetic():
    """The generator of runs that the benchmark uses too."""
    return _load_synthetic()


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A TensorBoard in a process of its own."""

    process: subprocess.Popen
    root: str  # address of the page
    logdir: Path

    @property
    def plugin(self) -> str:
        return f"{self.root}/data/plugin/dse"

    def get(
        self, route: str, *, method: str = "GET", headers: dict[str, str] | None = None, **query: Any
    ) -> Reply:
        address = f"{self.plugin}/{route}"
        if query:
            address += "?" + urllib.parse.urlencode(query)
        request = urllib.request.Request(address, method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
                return Reply(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, dict(error.headers), error.read())

    def points(self, run: str, **query: Any) -> tuple[dict, dict[str, np.ndarray]]:
        return self.packed("points", run=run, **query)

    def packed(self, route: str, **query: Any) -> tuple[dict, dict[str, np.ndarray]]:
        return unpack(self.get(route, **query).body)

    def wait_until_up(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, "TensorBoard ended"
            try:
                urllib.request.urlopen(f"{self.root}/data/plugins_listing", timeout=PATIENCE).close()
            except OSError:
                return False
            return True

        assert self.wait_for(answers), "TensorBoard did not start"

    def wait_for(self, claim) -> Any:
        """The first true value of a claim, asked again until TensorBoard has read its files."""
        end = time.monotonic() + PATIENCE
        while True:
            found = claim()
            if found or time.monotonic() > end:
                return found
            time.sleep(0.1)

    def wait_for_rows(self, run: str, count: int) -> dict[str, np.ndarray]:
        self.wait_for(lambda: self.points(run)[0]["rows"] >= count)
        return self.points(run)[1]


def unpack(body: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and columns of a packed reply, decoded here without the project's code."""
    (length,) = struct.unpack("<I", body[:4])
    header = json.loads(body[4 : 4 + length])
    table = np.frombuffer(body, "<f8", offset=4 + length).reshape(len(header["columns"]), header["rows"])
    return header, dict(zip(header["columns"], table, strict=True))


@pytest.fixture(scope="session")
def serve():
    """Start TensorBoards; all end with the session."""
    started = []

    def start(
        logdir: Path, *arguments: str, prefix: str = "", source: tuple[str, ...] | None = None
    ) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tensorboard.main", *(source or ("--logdir", str(logdir)))]
        command += ["--port", str(port), "--reload_interval", "1", "--path_prefix", prefix, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(process)
        return Server(process, f"http://127.0.0.1:{port}{prefix}", logdir)

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait()


@pytest.fixture(scope="session")
def logdir(tmp_path_factory, synthetic):
    """Runs of every kind: see the names. ``live/*`` are written to while TensorBoard runs."""
    folder = tmp_path_factory.mktemp("logs")
    day = 86_400
    clock = synthetic.START
    write = synthetic.write_run
    write(folder / "big", checkpoints=10_000, every=0.1, clock=clock - 9 * day, loss=False)
    write(folder / "falling", maps=True, failures=[17, 18], clock=clock)
    write(folder / "healthy", degraded=False, maps=True, seed=3, clock=clock + 60)
    other = dataclasses.replace(synthetic.SETTINGS, images="ffff0000aaaa", num_images=512)
    write(folder / "settings", checkpoints=12, settings=other, seed=5, clock=clock + 120)
    write(folder / "lossless", checkpoints=12, degraded=False, loss=False, clock=clock + 180)
    order = [*range(0, 20, 2), *range(19, 0, -2), 4, 4, 7]
    write(folder / "shuffled", checkpoints=20, order=order, clock=clock + 240)
    return folder


@pytest.fixture(scope="session")
def servers(serve, logdir):
    """One TensorBoard per data loader, over the same runs."""
    flags = {"fast": "true", "python": "false"}
    started = {name: serve(logdir, "--load_fast", flags[name]) for name in LOADERS}
    for server in started.values():
        server.wait_until_up()
    return started


@pytest.fixture(params=LOADERS)
def server(request, servers):
    """Each of the two in turn."""
    return servers[request.param]


@dataclass
class Page:
    """The tab in a browser page, and what went wrong in it."""

    page: Any
    frame: Any
    problems: list[str] = field(default_factory=list)

    def summary(self) -> dict:
        return self.frame.evaluate("window.__dse.summary()")

    def run(self, run: str) -> dict:
        return next(item for item in self.summary()["runs"] if item["id"] == run)

    def text(self, selector: str) -> str:
        return " ".join(self.frame.locator(selector).inner_text().split())

    def do(self, script: str) -> Any:
        """Run a function of the application object, and wait for what it returns."""
        return self.frame.evaluate(f"async () => {{ const app = window.__dse.app; {script} }}")


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium of the system."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, headless=True, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_tab(browser):
    """Open the tab, inside TensorBoard or (``host=False``) its frame alone, which is quicker.

    Fails the test if the page threw, logged an error, or broke its content security policy.
    """
    opened = []

    def go(server: Server, *, host=False, fragment="", query="", size=(1400, 900), script="") -> Page:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True)
        page = context.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
        page.on(
            "console",
            lambda message: (
                message.type == "error"
                and not NOT_OURS.search(message.location["url"])
                and problems.append(f"{message.text} {message.location['url']}")
            ),
        )
        context.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " event => console.error('policy', event.violatedDirective, event.blockedURI))"
        )
        if script:
            context.add_init_script(script)
        tab = Page(page, None, problems)
        opened.append((context, tab))
        if host:
            page.goto(f"{server.root}/{query}#dse{fragment}")
            selector = 'iframe[src*="plugin_entry.html?name=dse"]'
            page.frame_locator(selector).locator("body[data-ready]").wait_for(timeout=1000 * PATIENCE)
            tab.frame = next(frame for frame in page.frames if "plugin_entry" in frame.url)
        else:
            page.goto(f"{server.root}/data/plugin_entry.html?name=dse{query}#dse{fragment}")
            page.locator("body[data-ready]").wait_for(timeout=1000 * PATIENCE)
            tab.frame = page.main_frame
        return tab

    yield go
    problems = [problem for _, tab in opened for problem in tab.problems]
    for context, _ in opened:
        context.close()
    assert not problems
