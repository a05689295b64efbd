"""In a folder that holds somebody else's `trainers` and `tb_plugin`, everything of ours still works.

The tests run against whatever is installed: the checkout while developing, the wheel in .ci/run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLD = ROOT / "tests" / "data" / "old_run" / "exp1"
BIN = Path(sys.executable).parent
TRAIN = ["dino", "--preset", "tiny", "--data", "scenes", "--scenes", "16", "--batch-size", "8"]
TRAIN += ["--prototypes", "64", "--max-steps", "1", "--workers", "0", "--device", "cpu"]


@pytest.fixture
def foreign(tmp_path):
    """A folder like that of many a repository: its own packages under names that were ours once."""
    for name in ("trainers", "tb_plugin"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a foreign package was imported')\n")
    return tmp_path


def _environment(shadowed: bool) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {**environment, **({"PYTHONPATH": "."} if shadowed else {})}


def _run(command, folder, shadowed=False, seconds=200):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=_environment(shadowed),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_what_is_installed_is_one_top_level_name(foreign):
    code = (
        "import importlib.metadata as m, json; d = m.distribution('dse-monitor')\n"
        "print(json.dumps([d.read_text('top_level.txt'), [str(f) for f in d.files]]))"
    )
    _, files = json.loads(_run([sys.executable, "-c", code], foreign))
    names = {name.split("/")[0] for name in files} - {"..", "__pycache__"}
    ours = {name for name in names if not name.endswith((".dist-info", ".pth"))}
    assert ours <= {"dse_monitor"}  # an editable install has none, but a path


@pytest.mark.parametrize("shadowed", [False, True], ids=["as-is", "PYTHONPATH=."])
def test_readme_imports_work(foreign, shadowed):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    imports = [line for line in lines if re.match(r"(from|import) dse_monitor", line)]
    assert len(imports) >= 5
    _run([sys.executable, "-c", "\n".join(imports)], foreign, shadowed)


@pytest.mark.parametrize("shadowed", [False, True], ids=["as-is", "PYTHONPATH=."])
@pytest.mark.parametrize(
    "command",
    [
        [BIN / "dse-monitor", "--help"],
        [BIN / "dse-train", "--help"],
        [sys.executable, "-m", "dse_monitor", "--help"],
        [sys.executable, "-m", "dse_monitor", "train", "--help"],
    ],
    ids=["dse-monitor", "dse-train", "module", "module-train"],
)
def test_commands_answer(foreign, command, shadowed):
    assert "usage" in _run(command, foreign, shadowed).lower()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shadowed", [False, True], ids=["as-is", "PYTHONPATH=."])
def test_a_training_runs(foreign, shadowed):
    _run([BIN / "dse-train", *TRAIN, "--out", "run"], foreign, shadowed)
    assert (foreign / "run" / "checkpoint_last.pth").is_file()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_trains_with_two_processes(foreign):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    _run([*launch, "-m", "dse_monitor", "train", *TRAIN, "--out", "run"], foreign)
    assert (foreign / "run" / "checkpoint_last.pth").is_file()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shadowed", [False, True], ids=["as-is", "PYTHONPATH=."])
@pytest.mark.parametrize("command", [[sys.executable, "-m", "tensorboard.main"], [BIN / "tensorboard"]])
def test_tensorboard_starts_with_the_tab(foreign, command, shadowed):
    shutil.copytree(OLD, foreign / "logs" / "exp1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*map(str, command), "--logdir", "logs", "--port", str(port)]
    process = subprocess.Popen(
        words, cwd=foreign, env=_environment(shadowed), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        found = _get(process, f"http://127.0.0.1:{port}/data/plugins_listing")
        assert found["dse"]["tab_name"] == "DSE"
        runs = _get(process, f"http://127.0.0.1:{port}/data/plugin/dse/runs", until=lambda d: d["runs"])
        assert [run["run"] for run in runs["runs"]] == ["exp1/dse"]
    finally:
        process.terminate()
        process.communicate()


def _get(process, address, until=lambda data: True, seconds=90.0):
    end = time.monotonic() + seconds
    while True:
        assert process.poll() is None, process.communicate()[0].decode()
        try:
            with urllib.request.urlopen(address, timeout=10) as reply:
                data = json.load(reply)
            if until(data):
                return data
        except OSError:
            pass
        assert time.monotonic() < end, f"{address} did not answer"
        time.sleep(0.2)
