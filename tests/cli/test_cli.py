"""The command line as a user meets it: real processes, exit codes, one line per trouble."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dse_monitor.trainers import backbones

ROOT = Path(__file__).resolve().parents[2]

OPTIONS = {
    "best": "run top json path-only before-alarm",
    "demo": "out no-serve port",
    "export": "run csv json events",
    "inspect": "path layout encoder arch num-heads json",
    "layouts": "json",
    "probe": "checkpoint images masks num-images seed splits neighbours ignore image-size device precision "
    "micro-batch layout encoder arch num-heads json",
    "scenes": "folder count size seed masks",
    "silence": "run rule during off",
    "status": "run json",
}
POSITIONAL = {
    "best": "run",
    "export": "run",
    "inspect": "path",
    "probe": "checkpoint",
    "replay": "path",
    "scenes": "folder",
    "score": "checkpoint",
    "silence": "run",
    "status": "run",
    "watch": "run",
}
MEASURING = (
    "images num-images image-size seed batch group local-clusters global-clusters no-normalize precision "
    "micro-batch layout encoder arch num-heads"
)
RULES = (
    "margin threshold sustain recovered warmup early-best worsened plateau failures stale-seconds "
    "remind-seconds per-hour lam"
)
OPTIONS["score"] = f"checkpoint device cache threads json {MEASURING}"
OPTIONS["replay"] = "path json " + " ".join(f"rules.{name}" for name in RULES.split())
OPTIONS["watch"] = (
    "run out device once until-epoch until-step exit-after-idle every since min-interval keep-best "
    "copy-aside poll-seconds settle-seconds gpu-share cpu-fallback threads no-maps alert test-alert link "
    "plain json "
    f"{MEASURING} " + " ".join(f"rules.{name}" for name in RULES.split())
)


def run(*arguments, cwd=None, columns=300):
    command = [sys.executable, "-m", "dse_monitor", *map(str, arguments)]
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "COLUMNS": str(columns),
        "HOME": str(cwd or ROOT),
    }
    return subprocess.run(
        command, cwd=cwd or ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Scenes, and a run of three checkpoints of small networks that differ."""
    folder = tmp_path_factory.mktemp("workplace")
    assert run("scenes", folder / "images", "--count", 16, "--size", 64).returncode == 0
    (folder / "run").mkdir()
    spec = backbones.describe("vit_mini_patch8", 64, depth=1)
    for epoch in (1, 2, 3):
        torch.manual_seed(epoch)
        state = {f"teacher.backbone.{k}": v for k, v in backbones.build(spec).state_dict().items()}
        content = {
            "format": "dse-train",
            "schema": 1,
            "method": "dino",
            "epoch": epoch,
            "step": 10 * epoch,
            "backbone": {
                "name": spec.name,
                "kwargs": spec.kwargs,
                "image_size": 64,
                "num_heads": spec.num_heads,
            },
            "evaluated": "teacher.backbone.",
            "model": state,
        }
        torch.save(content, folder / "run" / f"checkpoint_{epoch:04d}.pth")
    (folder / "run" / "checkpoint_0004.pth").write_bytes(b"PK\x03\x04 and no more")
    return folder


@pytest.fixture(scope="module")
def watched(workplace):
    """The run after a look by the watcher."""
    done = run(
        "watch",
        "run",
        "--images",
        "images",
        "--num-images",
        16,
        "--once",
        "--plain",
        "--settle-seconds",
        0,
        cwd=workplace,
    )
    assert done.returncode == 3, done.stdout + done.stderr  # one file is no checkpoint
    return workplace, done.stdout


def test_help_loads_no_torch():
    code = (
        "import sys; sys.argv = ['dse-monitor', '--help']\n"
        "from dse_monitor.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_commands_and_options_are_these():
    listed = run("--help").stdout.partition("{")[2].partition("}")[0]
    assert set(listed.split(",")) == set(OPTIONS)
    for name, options in OPTIONS.items():
        positional = POSITIONAL.get(name)
        expected = {f"--{option}" for option in options.split() if option != positional}
        shown = run(name, "--help", columns=110).stdout.splitlines()  # wider, boxes stand side by side
        starts = [line.strip("│ ").split()[0] for line in shown if line.strip("│ ").startswith("--")]
        assert set(starts) == expected, name


def test_watch_once_says_a_line_for_each_checkpoint(watched):
    _, output = watched
    lines = output.splitlines()
    assert all(len(line) <= 100 for line in lines)
    rows = [line for line in lines if line.split()[:1] in (["1"], ["2"], ["3"])]
    assert len(rows) == 3
    assert sum("checkpoint_0004.pth" in line for line in lines) == 1
    assert "● best" in output


def test_watch_again_scores_nothing_twice(watched):
    workplace, _ = watched
    ledger = workplace / "run" / "dse" / "records.jsonl"
    before = ledger.read_bytes()
    run(
        "watch",
        "run",
        "--images",
        "images",
        "--num-images",
        16,
        "--once",
        "--settle-seconds",
        0,
        cwd=workplace,
    )
    facts = [json.loads(line)["kind"] for line in ledger.read_bytes()[len(before) :].splitlines()]
    assert "scored" not in facts


def test_best_names_a_file_that_exists(watched):
    workplace, _ = watched
    path = run("best", "run", "--path-only", cwd=workplace).stdout
    assert path.endswith(".pth\n")
    assert (workplace / path.strip()).is_file()
    table = json.loads(run("best", "run", "--json", cwd=workplace).stdout)
    assert table["candidates"][0]["file"] == path.strip()
    assert "Take epoch" in run("best", "run", cwd=workplace).stdout


def test_tables_and_status_come_from_the_ledger(watched):
    workplace, _ = watched
    header, *rows = run("export", "run", cwd=workplace).stdout.splitlines()
    assert header.startswith("seq,status,path")
    assert len(rows) == 4
    assert "3 scored" in run("status", "run", cwd=workplace).stdout
    replayed = json.loads(run("replay", "run", "--json", cwd=workplace).stdout)
    assert set(replayed) >= {"alerts", "best", "candidates"}


def test_a_test_alert_tries_every_sink_and_says_how_it_went(workplace):
    heard = workplace / "heard.json"
    keep = f"command:sh -c 'cat > {heard}'"
    done = run("watch", workplace / "run", "--images", workplace / "images", "--test-alert", "--alert", keep)
    assert (done.returncode, done.stdout.count("taken")) == (0, 1)
    assert json.loads(heard.read_text())["kind"] == "test"
    done = run("watch", workplace / "run", "--images", ".", "--test-alert", "--alert", keep, "command:false")
    assert done.returncode == 3
    assert "✗ command:false#fcbcf1: ended with code 1" in done.stdout


def test_a_silence_is_left_for_the_watcher(watched, workplace):
    home = workplace / "run" / "dse"
    done = run("silence", workplace / "run", "--rule", "degradation", "--during", "6h")
    assert (done.returncode, done.stderr) == (0, "")
    [left] = (home / "requests").iterdir()
    asked = json.loads(left.read_text())
    assert (asked["rule"], asked["until"] - asked["since"]) == ("degradation", 6 * 3600)
    done = run("silence", workplace / "run", "--during", "soon")
    assert (done.returncode, "soon" in done.stderr, "6h" in done.stderr) == (2, True, True)
    left.unlink()


def test_score_prints_one_object_per_checkpoint(workplace):
    files = [f"run/checkpoint_000{i}.pth" for i in (1, 4)]
    done = run(
        "score",
        *files,
        "--images",
        "images",
        "--num-images",
        16,
        "--json",
        "--cache",
        workplace / "c",
        cwd=workplace,
    )
    assert done.returncode == 3
    good, bad = map(json.loads, done.stdout.splitlines())
    assert good["status"] == "scored"
    assert good["source"]["epoch"] == 1
    parts = good["components"]
    separability = parts["m_inter"] - (parts["m_intra_image"] + parts["m_intra_batch"]) / 2
    assert good["dse_lambda1"] == pytest.approx(separability + parts["m_dim"])
    assert bad["status"] == "failed"
    assert "checkpoint_0004.pth" in bad["reason"]


def test_inspect_says_what_was_recognised(workplace):
    found = json.loads(run("inspect", "run/checkpoint_0002.pth", "--json", cwd=workplace).stdout)
    assert found["layout"] == "dse-train"
    assert "3 heads" in run("inspect", "run/checkpoint_0002.pth", cwd=workplace).stdout


def test_layouts_fit_a_terminal():
    done = run("layouts")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"dino", "mocov3", "mae", "byol", "dse-train"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("best", "nowhere"), "was not watched"),
        (("inspect", "nothing.pth"), "nothing.pth"),
        (("score", "run/checkpoint_0001.pth", "--images", "nowhere"), "folder of images"),
        (("watch", "run", "--images", "images", "--once", "--every", "0"), "every must be at least 1"),
        (("replay", "images"), "images"),
    ],
)
def test_trouble_is_one_line_and_code_2(workplace, arguments, said):
    done = run(*arguments, cwd=workplace)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("dse-monitor: ")
    assert said in line
    assert "Traceback" not in done.stderr
