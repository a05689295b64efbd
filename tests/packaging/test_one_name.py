"""Every module is imported under one name, also where a checkout's root puts others within reach."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Imports all there is, trains a step with a loader process, and lists the files that were loaded twice.
PROGRAM = """
import importlib, json, os, pkgutil, sys
sys.path.insert(0, os.getcwd())
import dse_monitor
for module in pkgutil.walk_packages(dse_monitor.__path__, "dse_monitor."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:  # lightning and transformers are extras
        assert error.name.partition(".")[0] in ("lightning", "transformers"), error
from dse_monitor.__main__ import main
sys.argv = ["dse-monitor", "train", "simsiam", "--preset", "tiny", "--data", "scenes", "--scenes", "8",
    "--batch-size", "4", "--max-steps", "1", "--workers", "1", "--device", "cpu", "--out", sys.argv[1]]
main()
names = {}
for name, module in list(sys.modules.items()):
    path = getattr(module, "__file__", None)
    if path and os.path.isfile(path) and name != "__main__":
        names.setdefault(os.path.realpath(path), []).append(name)
places = tuple(os.path.join(os.getcwd(), name, "") for name in ("dse_monitor", "trainers", "tb_plugin"))
ours = {path: found for path, found in names.items() if path.startswith(places)}
print(json.dumps({"twice": [found for found in ours.values() if len(found) > 1], "modules": len(ours),
    "strange": [found[0] for found in ours.values() if not found[0].startswith("dse_monitor")]}))
"""


@pytest.mark.timeout(300)
def test_nothing_is_loaded_twice_in_the_root_of_a_checkout(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["twice"] == []
    assert found["strange"] == []
    assert found["modules"] > 150
    assert (tmp_path / "run" / "checkpoint_last.pth").is_file()


@pytest.mark.parametrize("name", ["trainers", "tb_plugin"])
def test_the_folders_of_a_checkout_are_not_packages_of_their_own(name):
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: this package is dse_monitor.{name}" in done.stderr
