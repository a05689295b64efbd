"""Runs for the command line: an old watched one, for what needs no torch, and a workplace to watch."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs a command in this process, as if a terminal were 80 columns wide."""
    from dse_monitor.cli import main

    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code or 0
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run


@pytest.fixture
def old_run(tmp_path):
    """A run that was watched, with its output."""
    return Path(shutil.copytree(ROOT / "tests" / "data" / "old_run" / "exp1", tmp_path / "exp1"))


def start(*arguments, cwd):
    """Runs a command in a process of its own."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "100", "HOME": str(cwd)}
    done = subprocess.run(
        [sys.executable, "-m", "dse_monitor", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def in_process():
    """Runs a command in a process of its own, in a folder."""
    return start


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with images, and a run of three checkpoints of small networks that differ, and half a file."""
    import torch

    from dse_monitor.scenes import write_folder
    from dse_monitor.trainers import backbones

    folder = tmp_path_factory.mktemp("workplace")
    write_folder(folder / "images", count=16, size=64, seed=0)
    (folder / "run").mkdir()
    spec = backbones.describe("vit_mini_patch8", 64, depth=1)
    about = {"name": spec.name, "kwargs": spec.kwargs, "image_size": 64, "num_heads": spec.num_heads}
    for epoch in (1, 2, 3):
        with torch.random.fork_rng():
            torch.manual_seed(epoch)
            state = {f"teacher.backbone.{k}": v for k, v in backbones.build(spec).state_dict().items()}
        content = {
            "format": "dse-train",
            "schema": 1,
            "method": "dino",
            "epoch": epoch,
            "step": 10 * epoch,
            "backbone": about,
            "evaluated": "teacher.backbone.",
            "model": state,
        }
        torch.save(content, folder / "run" / f"checkpoint_{epoch:04d}.pth")
    (folder / "run" / "checkpoint_0004.pth").write_bytes(b"PK\x03\x04 and no more")
    return folder


WATCH = "watch run --images images --num-images 16 --once --plain --settle-seconds 0".split()


@pytest.fixture(scope="session")
def watched(workplace):
    """What the watcher said of the run; it is watched since then."""
    done = start(*WATCH, cwd=workplace)
    assert done.code == 3, done.out + done.err  # one file is not a checkpoint
    return done


@pytest.fixture
def watch_again(workplace, watched):
    """Watches the run once more."""
    return lambda: start(*WATCH, cwd=workplace)
