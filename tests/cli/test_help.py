"""Help as somebody reads it who has never seen the program."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dse_monitor import __version__
from dse_monitor.cli import COMMANDS
from dse_monitor.flags.table import described

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=COMMANDS)
def page(request, command):
    """The help of one command, with its name."""
    shown = command(request.param, "--help")
    assert (shown.code, shown.err) == (0, "")
    return request.param, shown.out


@pytest.mark.parametrize("columns", [80, 200])
def test_pages_fit_the_terminal(command, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("", *COMMANDS, "train"):
        arguments = [name, "--help"] if name else ["--help"]
        lines = command(*arguments).out.splitlines()
        assert max(map(len, lines)) <= columns, name


def test_first_page_has_a_line_for_each_command(command):
    shown = command("--help").out
    rows = re.findall(r"^  ([a-z]+) +(\S.*)\.$", shown, re.MULTILINE)
    assert [name for name, _ in rows] == [*COMMANDS, "train"]
    assert "{" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_no_command_shows_the_first_page_and_fails(command):
    nothing, asked = command(), command("--help")
    assert (nothing.code, nothing.out, nothing.err) == (2, "", asked.out)


def test_pages_begin_with_what_must_be_given_and_end_lines_in_words(page):
    name, text = page
    usage = text.splitlines()[0]
    assert usage.startswith(f"Usage: dse-monitor {name}")
    assert "None" not in text
    assert "{" not in text
    for required in re.findall(r"--\S+ \S+", usage):
        first = re.search(r"flags:\n +(--\S+ \S+)", text)
        assert first
        assert required in usage.split("[FLAGS]")[0]
    if "--" in usage:
        assert first[1].rstrip(",") == re.findall(r"--\S+ \S+", usage)[0]


def test_pages_have_two_examples_whose_flags_exist(page):
    name, text = page
    _, examples = described(COMMANDS[name].options)
    assert len(examples) == 2
    for line in examples:
        assert re.search(rf"(dse-monitor|-m dse_monitor) {name}\b", line)
        for word in shlex.split(re.sub(r"[()$\"]", " ", line)):
            assert not word.startswith("--") or word == "--nproc-per-node" or f"  {word}" in text, word


@pytest.mark.parametrize("name", ["watch", "score", "probe"])
def test_what_few_people_change_stands_apart(command, name):
    basic, advanced = command(name, "--help").out.split("Advanced flags:")
    assert "--device" in basic
    for flag in ("--seed", "--precision", "--micro-batch"):
        assert flag in advanced
        assert flag not in basic.partition("Basic flags:")[2]


@pytest.mark.parametrize(
    ("name", "flag", "said"),
    [
        ("watch", "--no-maps", "Do not paint feature maps"),
        ("watch", "--no-normalize", "Do not L2-normalise"),
        ("demo", "--no-serve", "Do not serve TensorBoard"),
        ("watch", "--poll-seconds SECONDS", r"\(default: chosen by the filesystem\)"),
        ("watch", "--num-images INT", r"\(default: 2048\)"),
        ("score", "flags: --images DIR", r"\(required\)"),
        ("watch", "--images DIR", r"\(default: looked for, see above\)"),
    ],
)
def test_flags_say_what_they_do(command, name, flag, said):
    text = " ".join(command(name, "--help").out.split())
    assert re.search(rf"{re.escape(flag)} .{{0,150}}?{said}", text)


def test_labelled_images_have_one_name_and_the_old_one_works(command, tmp_path):
    assert "--labelled DIR --masks DIR" in command("probe", "--help").out
    for flag in ("--labelled", "--images"):
        done = command("probe", flag, tmp_path, "--masks", tmp_path)
        assert done.err == "dse-monitor: nothing to probe: name checkpoints, or one watched run\n"


@pytest.mark.parametrize("program", ["dse-monitor", "dse-monitor train"])
def test_version_is_one_line(command, program):
    asked = command(*program.split()[1:], "--version")
    assert (asked.code, asked.out) == (0, f"{program} {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["wach", "run"], "watch"),
        (["inspct"], "inspect"),
        (["--versoin"], "--version"),
        (["watch", "run", "--imags", "x"], "--images"),
        (["watch", "run", "--poll-second=3"], "--poll-seconds"),
        (["replay", "run", "--rules.margn", "0.1"], "--rules.margin"),
        (["probe", "run", "--labeled", "x"], "--labelled"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(command, arguments, meant):
    done = command(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert meant in done.err.partition("did you mean ")[2]


def test_what_resembles_nothing_is_refused_with_where_to_look(command):
    done = command("best", "run", "--zzz")
    assert (done.code, done.err) == (
        2,
        "dse-monitor best: there is no flag --zzz; dse-monitor best --help lists them\n",
    )


def test_missing_and_wrong_values_end_with_code_2(command):
    for arguments in (["watch", "run"], ["watch", "run", "--images", "i", "--every", "two"], ["best"]):
        done = command(*arguments)
        assert done.code == 2
        assert "Traceback" not in done.err


def test_modules_and_scripts_are_one_program_and_help_loads_no_torch():
    code = (
        "import runpy, sys\n"
        "def said(*arguments):\n"
        "    sys.argv = ['dse-monitor', *arguments]\n"
        "    try: runpy.run_module('dse_monitor', run_name='__main__')\n"
        "    except SystemExit as ended: assert not ended.code\n"
        "said('--version')\n"
        "said('watch', '--help')\n"
        "said('train', '--help')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"dse-monitor {__version__}"
    assert lines[-1] == "False"


@pytest.mark.parametrize(
    "arguments", [("watch", "", "--images", "i"), ("scenes", ""), ("watch", "run", "--images", "")]
)
def test_an_empty_argument_is_refused_since_it_would_be_the_current_folder(command, arguments):
    done = command(*arguments)
    assert done.code == 2
    assert "was a variable of the shell not set?" in done.err


@pytest.mark.parametrize("command_line", ["dse_monitor --help", "dse_monitor train --help"])
def test_a_reader_that_leaves_is_not_an_error(command_line):
    shell = f"{sys.executable} -m {command_line} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_method_comes_before_its_flags(command):
    done = command("train", "--data", "scenes", "simsiam")
    assert done.code == 2
    assert "the method comes first" in done.err
