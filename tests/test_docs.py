"""What the documents claim about this repository is true of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "tb_plugin" / "http_api.md"])


def shell_blocks(text):
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_readme_has_one_command_to_see_and_one_to_test():
    demo, tests = shell_blocks(README)
    assert demo.rstrip().endswith("dse-monitor demo")
    assert "'.[test]'" in tests
    assert tests.rstrip().endswith("-m pytest")


def test_ci_runs_the_second_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    extract = re.search(r"^ *tests=\"\$\((awk .*)\)\"$", script, re.MULTILINE)
    assert extract
    done = subprocess.run(["bash", "-c", extract[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == shell_blocks(README)[1]


def test_readme_lists_every_command():
    code = "import sys; sys.argv = ['dse-monitor', '--help']; from dse_monitor.cli import main; main()"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    commands = re.findall(r"^  ([a-z]+) ", shown, re.MULTILINE)
    assert len(commands) > 10
    assert set(re.findall(r"^\| `([a-z]+)", README, re.MULTILINE)) == set(commands)


def test_faults_are_those_that_tests_make():
    """Every test that docs/failures.md names exists."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "failures.md").read_text()))
    defined = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    assert len(named) > 50
    assert named <= defined, sorted(named - defined)
