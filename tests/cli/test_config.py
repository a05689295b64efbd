"""`dse-monitor watch RUN` as typed: where options come from, what is said of it, and `dse-monitor config`."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from dse_monitor.watch.options import WatchOptions


@pytest.fixture(autouse=True)
def _nothing_of_the_users_own(monkeypatch, tmp_path):
    monkeypatch.delenv("DSE_MONITOR_IMAGES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


@pytest.fixture
def asked(command, monkeypatch):
    """The options a `watch` command would watch with."""
    seen = []
    monkeypatch.setattr("dse_monitor.cli.watch.become", seen.append)

    def ask(*arguments):
        done = command("watch", *arguments)
        assert (done.code, done.err) == (0, "")
        return seen[-1]

    return ask


@pytest.fixture
def run(tmp_path):
    """An empty run."""
    folder = tmp_path / "runs" / "exp1"
    folder.mkdir(parents=True)
    return folder


def test_a_run_watched_before_goes_on_without_options(workplace, watched, in_process):
    book = workplace / "run" / "dse" / "records.jsonl"
    before = book.read_bytes()
    done = in_process(*"watch run --once --plain --settle-seconds 0".split(), cwd=workplace)
    assert done.code == 3, done.out + done.err  # the file that is none, as before
    added = [json.loads(line) for line in book.read_bytes()[len(before) :].splitlines()]
    assert "scored" not in [fact["kind"] for fact in added]
    first = next(json.loads(line) for line in before.splitlines() if b'"kind":"watch"' in line)
    assert [fact["request"] for fact in added if fact["kind"] == "watch"] == [first["request"]]
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "options images " + str(workplace / "images") in " ".join(lines)
    assert "from what the run was watched with before" in " ".join(lines)


def test_a_configuration_file_names_the_images(asked, run, tmp_path):
    file = tmp_path / "runs" / "dse-monitor.toml"
    file.write_text('[watch]\nimages = "held-out"\nmaps = false\nonce = true\nrules.margin = 0.5\n')
    options = asked(run)
    assert options.config.images == tmp_path / "runs" / "held-out"
    assert (options.maps, options.once, options.rules.margin) == (False, True, 0.5)
    assert (f"images {tmp_path}/runs/held-out", str(file)) in options.found
    assert WatchOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_the_command_line_wins(asked, run, tmp_path):
    (tmp_path / "runs" / "dse-monitor.toml").write_text(
        '[watch]\nimages = "held-out"\nmaps = false\nonce = true\nnum-images = 16\nalert = ["log"]\n'
    )
    typed = ("--images", "typed", "--maps", "--no-once", "--num_images=2048", "--alert")
    options = asked(run, *typed)
    assert options.config.images == Path("typed").absolute()
    assert (options.maps, options.once, options.config.num_images, options.alert) == (True, False, 2048, ())
    assert options.found == ()


def test_a_variable_names_the_images(asked, run, monkeypatch):
    monkeypatch.setenv("DSE_MONITOR_IMAGES", "/data/held-out")
    options = asked(run)
    assert options.config.images == Path("/data/held-out")
    assert options.found == (("images /data/held-out", "the variable DSE_MONITOR_IMAGES"),)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (lambda data: {"args": argparse.Namespace(lr=0.1, data_path=str(data))}, "args.data_path"),
        (lambda data: {"args": {"data": data}}, "args.data"),
        (lambda data: {"hyper_parameters": {"data_dir": str(data)}}, "hyper_parameters.data_dir"),
    ],
)
def test_the_images_of_the_training_are_the_last_resort(asked, run, tmp_path, content, name):
    (tmp_path / "train").mkdir()
    torch.save({"model": {"w": torch.zeros(2)}, **content(tmp_path / "train")}, run / "checkpoint0001.pth")
    options = asked(run)
    assert options.config.images == tmp_path / "train"
    [(_, where)] = options.found
    assert where == f"{name} in checkpoint0001.pth; these are training images, not held-out ones"


def test_a_recorded_path_that_is_not_here_is_not_taken(command, run, tmp_path):
    for epoch, data in enumerate(("/not/here", "relative", 3, "\0")):
        torch.save({"args": {"data_path": data}, "w": torch.zeros(1)}, run / f"checkpoint000{epoch}.pth")
        assert "no training recorded a data path that is here" in command("watch", run).err
        (run / f"checkpoint000{epoch}.pth").unlink()


def test_without_images_the_ways_on_are_said_in_one_line(command, run, tmp_path):
    done = command("watch", run)
    assert (done.code, done.err.count("\n")) == (2, 1)
    for way in ("--images DIR", f'images = "DIR" below a line [watch] in {tmp_path}/runs/dse-monitor.toml'):
        assert way in done.err
    assert done.err.endswith("or set DSE_MONITOR_IMAGES\n")


def test_a_value_out_of_range_names_the_file_it_is_from(command, run, tmp_path):
    file = tmp_path / "runs" / "dse-monitor.toml"
    file.write_text('[watch]\nimages = "x"\nnum-images = 2\n')
    done = command("watch", run)
    assert done.code == 2
    assert "num_images must be at least 8, got 2" in done.err
    assert str(file) in done.err
    file.write_text("[watch]\nimage = 2\n")
    assert command("watch", run).err == (
        f"dse-monitor: {file}: there is no option image in [watch]; did you mean images?\n"
    )


def test_config_shows_what_holds_and_what_does_not(command, run, tmp_path, monkeypatch):
    done = command("config", run)
    assert done.code == 1
    assert "no images to measure" in done.out
    monkeypatch.setenv("DSE_MONITOR_IMAGES", "/data/variable")
    file = tmp_path / "runs" / "dse-monitor.toml"
    file.write_text('[watch]\nimages = "held-out"\nkeep-best = 2\n')
    done = command("config", run)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[:3] == [
        f"images     {tmp_path}/runs/held-out",
        f"             from {file}",
        "             not /data/variable, from the variable DSE_MONITOR_IMAGES",
    ]
    assert "keep-best  2" in lines
    objects = {
        item["option"]: item for item in map(json.loads, command("config", run, "--json").out.splitlines())
    }
    assert objects["keep-best"] == {"option": "keep-best", "value": 2, "from": str(file), "others": []}
    assert objects["seed"]["from"] == "default"
    assert objects["images"]["others"][0]["value"] == "/data/variable"


def test_config_speaks_of_the_current_folder(command, run, monkeypatch):
    monkeypatch.chdir(run)
    (run.parent / "dse-monitor.toml").write_text('[watch]\nimages = "held-out"\n')
    assert command("config").out.startswith(f"images  {run.parent}/held-out\n")
