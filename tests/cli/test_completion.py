"""Shells complete commands and flags."""

import shutil
import subprocess

import pytest

from dse_monitor.cli import COMMANDS

pytestmark = pytest.mark.fast

BASH = shutil.which("bash") or "bash"


@pytest.mark.parametrize("program", [[], ["train"]], ids=["dse-monitor", "dse-train"])
def test_bash_accepts_the_script(command, tmp_path, program):
    script = tmp_path / "completion"
    done = command(*program, "--tyro-write-completion", "bash", script)
    assert (done.code, done.err) == (0, "")
    assert subprocess.run([BASH, "-n", script], check=False).returncode == 0
    text = script.read_text()
    for word in ("dino", "--dse-weight", *(() if program else (*COMMANDS, "--images", "--rules.margin"))):
        assert word in text


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("wa", {"watch"}),
        ("watch run --im", {"--images", "--image-size"}),
        ("train dino --re", {"--resume"}),
        ("train dino --pre", {"--precision", "--preset"}),
    ],
)
def test_bash_offers_what_begins_so(command, tmp_path, typed, offered):
    script = tmp_path / "completion"
    command("--tyro-write-completion", "bash", script)
    words = ["dse-monitor", *typed.split()]
    ask = (
        f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _tyro_dse_monitor; "
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run([BASH, "-c", ask], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


def test_bash_completes_paths_where_no_flag_fits(command, tmp_path):
    script = tmp_path / "completion"
    command("--tyro-write-completion", "bash", script)
    ask = (
        f"source {script}; COMP_WORDS=(dse-monitor best ru); COMP_CWORD=2; _tyro_dse_monitor; "
        "echo ${#COMPREPLY[@]}; complete -p dse-monitor"
    )
    done = subprocess.run([BASH, "-c", ask], capture_output=True, text=True, check=True)
    count, how = done.stdout.splitlines()
    assert count == "0"  # then bash does what `-o default` says
    assert "-o default" in how


def test_an_unfinished_request_says_what_it_needs(command):
    done = command("--tyro-write-completion", "powershell", "x")
    assert (done.code, done.err.count("\n"), "zsh" in done.err) == (2, 1, True)
