"""`--network` on every command that reads checkpoints, in processes of their own."""

import json
import sys

import pytest
import torch

from dse_monitor.runs import ledger

NET = """
import torch
from torch import nn
from sizes import SIZE

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 8, 8)
        self.mix = nn.Conv2d(12, 12, 1)

    def forward(self, images):
        return self.mix(self.stem(images).relu())

def build():
    print("somebody's own words")
    from dse_monitor import OwnNetwork
    return OwnNetwork(module=Net(), image_size=SIZE)

def broken():
    return {}["depth"]
"""
FLAGS = "--images images --num-images 16 --network my_net.py:build".split()
WATCH = ["watch", "run", *FLAGS, *"--once --plain --settle-seconds 0 --device cpu".split()]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images and masks, a network of one's own, and a run of two of its checkpoints."""
    from dse_monitor.scenes import write_folder

    write_folder(tmp_path / "labelled", count=16, size=64, seed=0, masks=True)
    (tmp_path / "images").symlink_to(tmp_path / "labelled" / "images")
    (tmp_path / "my_net.py").write_text(NET)
    (tmp_path / "sizes.py").write_text("SIZE = 64\n")
    monkeypatch.delitem(sys.modules, "sizes", raising=False)  # of another test's folder
    (tmp_path / "run").mkdir()
    for epoch in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(epoch)
            state = {
                "net.stem.weight": torch.randn(12, 3, 8, 8),
                "net.stem.bias": torch.randn(12),
                "net.mix.weight": torch.randn(12, 12, 1, 1),
                "net.mix.bias": torch.randn(12),
            }
        torch.save({"model": state, "epoch": epoch}, tmp_path / "run" / f"checkpoint_{epoch}.pth")
    return tmp_path


def records(place):
    return [e for e in ledger.read(place / "run" / "dse").evaluations if e.status == "scored"]


def test_a_run_is_watched_and_measured_anew_when_the_code_changes(in_process, place):
    done = in_process(*WATCH, cwd=place)
    assert done.code == 0, done.out + done.err
    first = records(place)
    assert [e.source.epoch for e in first] == [1, 2]
    assert {e.source.arch for e in first} == {"Net of my_net.py:build"}
    assert {e.settings.facts[0].source for e in first} == {"--network, of my_net.py and sizes.py"}
    again = in_process(*WATCH, cwd=place)
    assert (again.code, len(records(place))) == (0, 2)
    (place / "sizes.py").write_text("SIZE = 64  # nothing else\n")
    assert in_process(*WATCH, cwd=place).code == 0
    both = records(place)
    assert len(both) == 4
    assert both[2].source.content == both[0].source.content
    assert both[2].settings.facts[0].value != both[0].settings.facts[0].value
    assert both[2].settings.fingerprint != both[0].settings.fingerprint


def test_score_prints_nothing_but_its_json(in_process, place):
    done = in_process("score", "run/checkpoint_1.pth", *FLAGS, "--json", "--cache", "c", cwd=place)
    assert done.code == 0, done.err
    assert json.loads(done.out)["source"]["arch"] == "Net of my_net.py:build"
    assert "somebody's own words" in done.err


def test_inspect_says_which_code_it_was(in_process, place):
    done = in_process("inspect", "run/checkpoint_1.pth", "--network", "my_net.py:build", cwd=place)
    assert done.code == 0, done.err
    assert "network    Net of my_net.py:build" in done.out
    assert "--network, of my_net.py and sizes.py" in " ".join(done.out.split())
    assert "64 x 12 at 64 px" in done.out


def test_probe_asks_for_the_code_by_name(in_process, command, place, monkeypatch):
    monkeypatch.chdir(place)
    assert in_process(*WATCH, cwd=place).code == 0
    labels = "--labelled labelled/images --masks labelled/masks --splits 1".split()
    done = command("probe", "run", *labels)
    assert done.code == 2
    assert f"on the network of {place}/my_net.py:build: name it here as well, with --network" in done.err
    done = command("probe", "run", *labels, "--network", "my_net.py:build")
    assert done.code == 0, done.err
    assert "2 of 2 checkpoints probed" in done.out


@pytest.mark.parametrize(
    ("arguments", "network", "said"),
    [
        (
            "watch run --once",
            "my_net.py:builder",
            "my_net.py defines Net, build, broken; there is no builder",
        ),
        ("watch run --once --plain", "my_net.py:broken", r"my_net.py:21 in broken: KeyError: 'depth'"),
        ("score run/checkpoint_1.pth", "my_net.py:broken", r"my_net.py:21 in broken: KeyError: 'depth'"),
        ("score run", "nowhere.py:build", "nowhere.py is no file that can be read"),
        ("inspect run/checkpoint_1.pth", "my_net.py:broken", r"my_net.py:21 in broken: KeyError: 'depth'"),
        (
            "probe run/checkpoint_1.pth",
            "my_net:builder",
            "for the file in this folder write my_net.py:builder",
        ),
    ],
)
def test_what_is_wrong_with_the_code_is_one_line_and_code_2(
    in_process, command, place, monkeypatch, arguments, network, said
):
    monkeypatch.chdir(place)
    images = {"inspect": [], "probe": "--labelled images --masks labelled/masks".split()}
    flags = images.get(arguments.split()[0], "--images images --num-images 16".split())
    asked = [*arguments.split(), *flags, "--network", network]
    watches = "--plain" in asked  # this process would become the watcher
    done = in_process(*asked, cwd=place) if watches else command(*asked)
    assert done.code == 2, done.out + done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (place / "run" / "dse" / "media").exists()
