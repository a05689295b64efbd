"""inspect and layouts."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.fast


def test_inspect_says_what_was_recognised(command, old_run):
    path = old_run / "checkpoint_0016.pth"
    found = json.loads(command("inspect", path, "--json").out)
    assert (found["layout"], found["path"]) == ("dse-train", str(path))
    shown = command("inspect", path).out
    assert shown.splitlines()[0] == str(path)
    assert found["network"] in shown


def test_inspect_loads_no_torch(old_run):
    code = (
        "import sys\n"
        "from dse_monitor.cli import main\n"
        "try: main(['inspect', sys.argv[1]])\n"
        "finally: print('torch' in sys.modules)"
    )
    run = [sys.executable, "-c", code, str(old_run / "checkpoint_0016.pth")]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_file_that_is_not_there_is_one_line_and_code_2(command):
    done = command("inspect", "nothing.pth")
    assert done.code == 2
    assert done.err.startswith("dse-monitor: ")
    assert "nothing.pth" in done.err
    assert done.err.count("\n") == 1


def test_layouts_fit_a_terminal(command):
    names = [line.split()[0] for line in command("layouts").out.splitlines()]
    assert {"dino", "mocov3", "mae", "byol", "dse-train"} <= set(names)
    assert [json.loads(line)["name"] for line in command("layouts", "--json").out.splitlines()] == names[1:]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("score", "c.pth", "--images", "i", "--layout", "dno"), "did you mean dino?"),
        (("watch", "run", "--images", "i", "--once", "--layout", "??"), "`dse-monitor layouts` lists them"),
    ],
)
def test_a_layout_that_does_not_exist_is_refused_before_anything_is_measured(command, arguments, advice):
    done = command(*arguments)
    assert done.code == 2
    assert "there is no layout" in done.err
    assert advice in done.err
