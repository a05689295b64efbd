"""What a wheel carries: one import name, the page, and the chart library as its authors published it."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tb_plugin"
PUBLISHED = {  # name in static/vendor <- name in the npm package
    "uPlot.esm.js": "dist/uPlot.esm.js",
    "uPlot.min.css": "dist/uPlot.min.css",
    "uPlot.LICENSE": "LICENSE",
}


def test_library_is_pinned_with_the_hash_of_its_archive():
    manifest = json.loads((SOURCE / "package.json").read_text())
    lock_text = (SOURCE / "package-lock.json").read_text()
    locked = json.loads(lock_text)["packages"]["node_modules/uplot"]
    assert manifest["dependencies"] == {"uplot": locked["version"]}
    assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", locked["integrity"])
    assert "http" not in lock_text  # any registry or mirror will do
    head = (SOURCE / "static" / "vendor" / "uPlot.esm.js").read_text(encoding="utf-8")[:1000]
    assert f"(v{locked['version']})" in head


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm is installed")
def test_library_is_byte_for_byte_what_the_pinned_archive_holds(tmp_path):
    """npm refuses an archive whose hash is not the one in package-lock.json."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(SOURCE / name, tmp_path / name)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    package = tmp_path / "node_modules" / "uplot"
    for ours, theirs in PUBLISHED.items():
        held = (SOURCE / "static" / "vendor" / ours).read_bytes()
        assert hashlib.sha256(held).digest() == hashlib.sha256((package / theirs).read_bytes()).digest(), ours


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The names in a wheel built from what git would check out, and its entry points."""
    pytest.importorskip("hatchling", reason="building needs hatchling (pip install hatchling)")
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__", "node_modules", "*.egg-info")
    for name in ("dse_monitor", "tb_plugin", "trainers"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore, symlinks=True)
    for name in ("pyproject.toml", "LICENSE", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_one_top_level_name_beside_its_metadata(wheel):
    names = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"dse_monitor"}


def test_wheel_carries_every_module_and_page_of_the_source_tree(wheel):
    names = set(wheel.namelist())
    for folder, place in (
        ("dse_monitor", ""),
        ("trainers", "dse_monitor/"),
        ("tb_plugin", "dse_monitor/"),
    ):
        found = [*(ROOT / folder).rglob("*.py"), *(ROOT / folder / "static").rglob("*.*")]
        expected = {place + p.relative_to(ROOT).as_posix() for p in found if "node_modules" not in p.parts}
        assert expected
        assert expected <= names
    assert not any("node_modules" in name or "package" in name for name in names)


def test_wheel_names_its_commands_and_the_tab(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    lines = wheel.read(name).decode().splitlines()
    assert "dse-monitor = dse_monitor.__main__:main" in lines
    assert "dse-train = dse_monitor.trainers.command_line:main" in lines
    assert "dse = dse_monitor.tb_plugin.loader:DSELoader" in lines
