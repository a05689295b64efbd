"""What packages add through entry points, and that a faulty one harms only those who ask for it."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dse_monitor import plugins
from dse_monitor.errors import PluginError
from dse_monitor.plugins import Registry

pytestmark = pytest.mark.fast

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugin"
TABLE = {"pi": "math:pi", "tau": "math:tau"}
GROUP = "dse_monitor.numbers"


def is_number(name, thing):
    if not isinstance(thing, float):
        raise TypeError(f"expected a float, found {type(thing).__name__}")


def numbers():
    return Registry(GROUP, "number", TABLE, is_number)


def test_built_in_names_are_loaded_without_a_look_at_installed_packages(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda: pytest.fail("packages were looked through"))
    assert numbers().load("tau") == pytest.approx(6.2832, abs=1e-4)


def test_a_package_adds_a_name(packages):
    packages.add("golden", f"[{GROUP}]\nphi = golden_ratio:PHI\n", golden_ratio="PHI = 1.618\n")
    registry = numbers()
    assert registry.names() == ["pi", "tau", "phi"]
    assert registry.load("phi") == 1.618
    assert registry.load_all().keys() == {"pi", "tau", "phi"}
    assert (registry.origin("phi"), registry.origin("pi")) == ("golden 1.0", "")


def test_unknown_names_are_key_errors(packages):
    packages.add("golden", f"[{GROUP}]\nphi = golden_ratio:PHI\n")
    with pytest.raises(KeyError):
        numbers().load("e")


def test_listing_names_imports_nothing_and_loading_imports_one(packages):
    packages.add(
        "pair", f"[{GROUP}]\none = pair_one:X\ntwo = pair_two:X\n", pair_one="X = 1.0\n", pair_two="X = 2.0\n"
    )
    registry = numbers()
    assert registry.names() == ["pi", "tau", "one", "two"]
    assert not {"pair_one", "pair_two"} & sys.modules.keys()
    assert registry.load("two") == 2.0
    assert "pair_one" not in sys.modules


def test_other_groups_are_not_taken(packages):
    packages.add("other", "[dse_monitor.letters]\na = json:dumps\n\n[console_scripts]\nb = json:dumps\n")
    assert numbers().names() == ["pi", "tau"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import not_to_be_found\n", "ModuleNotFoundError: No module named 'not_to_be_found'"),
        ("raise SystemExit('go away')\n", "SystemExit: go away"),
        ("raise ValueError('first line\\nsecond line')\n", "ValueError: first line second line. Update"),
        ("Y = 1.0\n", "AttributeError: module 'faulty_module' has no attribute 'X'"),
        ("X = 'one'\n", "it breaks the contract: expected a float, found str"),
        ("class Odd(BaseException): pass\nraise Odd('so')\n", "Odd: so"),
        (
            "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute\n",
            "Mute: an error of class Mute without a text",
        ),
        ("raise ValueError('\x1b[31mred\x1b[0m')\n", "ValueError: [31mred[0m"),
    ],
)
def test_faulty_plugin_is_skipped_with_one_warning_and_raised_where_it_is_asked_for(
    packages, caplog, source, reason
):
    packages.add("faulty", f"[{GROUP}]\nbad = faulty_module:X\n", version="2.1", faulty_module=source)
    registry = numbers()
    with caplog.at_level(logging.WARNING):
        assert registry.load_all() == registry.load_all()
        assert registry.load_all().keys() == TABLE.keys()
    (line,) = (record.getMessage() for record in caplog.records)
    for part in ("number 'bad'", "faulty 2.1", "faulty_module:X", GROUP, reason, "Update or uninstall it"):
        assert part in line
    assert "\n" not in line
    with pytest.raises(PluginError) as caught:
        registry.load("bad")
    assert str(caught.value) == line


def test_what_a_plugin_prints_or_moves_disturbs_nobody(packages, capfd, monkeypatch, tmp_path):
    """Standard output may be JSON that a program reads."""
    monkeypatch.chdir(tmp_path)
    source = "import os, sys\nprint('hello')\nos.write(1, b'low level')\n"
    source += "os.chdir('/')\nsys.stdout.close()\nX = 1.0\n"
    packages.add("loud", f"[{GROUP}]\nloud = loud_module:X\n", loud_module=source)
    assert numbers().load("loud") == 1.0
    print("still here")
    said = capfd.readouterr()
    assert said.out == "still here\n"
    assert "low level" in said.err
    assert Path.cwd() == tmp_path


def test_a_plugin_cannot_replace_a_built_in_name(packages, caplog):
    packages.add("thief", f"[{GROUP}]\npi = thief_module:X\n", thief_module="X = 3.0\n")
    registry = numbers()
    assert registry.load("pi") == pytest.approx(3.14159, abs=1e-5)
    assert registry.load_all()["pi"] == pytest.approx(3.14159, abs=1e-5)
    assert registry.names() == ["pi", "tau"]
    (line,) = (record.getMessage() for record in caplog.records)
    assert "thief 1.0 (pi = 'thief_module:X')" in line
    assert "the built-in 'math:pi' has the name" in line
    assert "thief_module" not in sys.modules


def test_of_two_plugins_with_one_name_none_is_used(packages, caplog):
    packages.add("first", f"[{GROUP}]\nsame = json:X\n")
    packages.add("second", f"[{GROUP}]\nsame = math:e\n")
    registry = numbers()
    assert registry.load_all().keys() == TABLE.keys()
    (line,) = (record.getMessage() for record in caplog.records)
    assert "first 1.0 (same = 'json:X')" in line
    assert "second 1.0 (same = 'math:e')" in line
    assert "uninstall one of them" in line
    with pytest.raises(PluginError, match=r"first 1\.0"):
        registry.load("same")


def test_a_package_that_is_installed_twice_is_one_package(packages, tmp_path, monkeypatch):
    packages.add("golden", f"[{GROUP}]\nphi = math:pi\n", version="1.0")
    packages.declare(tmp_path / "first", "golden", f"[{GROUP}]\nphi = math:tau\n", version="2.0")
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    plugins.entry_points.cache_clear()
    assert numbers().origin("phi") == "golden 2.0"
    assert numbers().load("phi") == numbers().load("tau")


def test_damaged_metadata_of_one_package_hides_no_other(packages, caplog):
    packages.add("golden", f"[{GROUP}]\nphi = math:pi\n")
    packages.add("damaged", f"[{GROUP}]\nphi = ma")
    damaged = packages.folder / "damaged-1.0.dist-info" / "entry_points.txt"
    damaged.write_bytes(b"[dse_monitor.numbers]\nx = \xff\xfe:y\n")
    plugins.entry_points.cache_clear()
    assert numbers().load("phi") == numbers().load("pi")
    assert "cannot be read" in caplog.text


def test_packages_are_looked_through_once(packages, monkeypatch):
    import importlib.metadata

    looks = []
    found = importlib.metadata.distributions

    def distributions():
        looks.append(1)
        return found()

    monkeypatch.setattr(importlib.metadata, "distributions", distributions)
    first, second = numbers(), Registry("dse_monitor.letters", "letter", {}, is_number)
    first.load_all()
    first.names()
    second.load_all()
    assert len(looks) == 1


def test_the_tables_load_no_metadata_and_no_client_of_a_network():
    """A watcher without sinks, and one with a simple sink, do without their memory."""
    code = (
        "import sys\n"
        "from dse_monitor.alerts import sinks\n"
        "from dse_monitor.alerts.sinks import delivery, outbox\n"
        "from dse_monitor.checkpoints import families, layouts\n"
        "from dse_monitor.trainers import methods\n"
        "sinks.from_spec('log'); layouts.by_name('dino'); families.load('vit')\n"
        "heavy = {'importlib.metadata', 'http.client', 'smtplib', 'ssl', 'urllib.request', 'torch'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_extension_point_is_documented_and_has_an_example():
    from dse_monitor.alerts import sinks
    from dse_monitor.checkpoints import families, layouts
    from dse_monitor.trainers import methods

    document = (EXAMPLE.parents[1] / "docs" / "adding.md").read_text(encoding="utf-8")
    example = (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")
    for place in (methods, layouts, sinks, families):
        assert f"`{place.REGISTRY.group}`" in document
        assert f'[project.entry-points."{place.REGISTRY.group}"]' in example


# The example, installed for real ----------------------------------------------------------------------------

CHECKPOINTS = """
import timm, torch
from dse_monitor_example.mixer import Mixer

torch.manual_seed(0)
kwargs = {"img_size": 64, "patch_size": 8, "depth": 2, "num_classes": 0}
state = lambda: timm.create_model("vit_tiny_patch16_224", **kwargs).state_dict()
online = {f"module.trunk.{name}": value for name, value in state().items()}
averaged = {f"trunk.{name}": value for name, value in state().items()}
torch.save({"lab_version": 1, "epoch": 9, "online": online, "averaged": averaged}, "ckpt_0009.pt")
mixer = Mixer(side=8, patch=8, width=48, depth=2, hidden=96, classes=5)
torch.save({"model": mixer.state_dict(), "epoch": 3}, "mixer.pth")
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Runs Python with the example installed, in one folder; returns standard output."""
    import dse_monitor

    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("target")
    shutil.copytree(EXAMPLE, source)
    folder = tmp_path_factory.mktemp("work")
    environment = {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{Path(dse_monitor.__file__).parents[1]}"}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir")
    run(
        "-m", "pip", "install", "--quiet", *offline, "--disable-pip-version-check", "--target", target, source
    )
    run("-c", CHECKPOINTS)
    run("-m", "dse_monitor", "scenes", "images", "--count", "16", "--size", "64")
    return run


def evaluation_of(example, checkpoint):
    small = ("--images", "images", "--num-images", "16", "--batch", "16", "--device", "cpu", "--threads", "1")
    return json.loads(example("-m", "dse_monitor", "score", checkpoint, *small, "--json"))


@pytest.mark.slow
def test_method_of_the_example_trains_and_is_scored(example):
    assert "simclr" in example("-m", "dse_monitor", "train", "--help")
    tiny = ("--preset", "tiny", "--data", "scenes", "--scenes", "32", "--batch-size", "16", "--epochs", "1")
    example(
        "-m", "dse_monitor", "train", "simclr", *tiny, "--device", "cpu", "--workers", "0", "--out", "run"
    )
    evaluation = evaluation_of(example, "run/checkpoint_0001.pth")
    assert (evaluation["status"], evaluation["source"]["layout"]) == ("scored", "dse-train")


@pytest.mark.slow
def test_layout_of_the_example_is_listed_inspected_and_scored(example):
    assert "example-lab" in example("-m", "dse_monitor", "layouts")
    found = json.loads(example("-m", "dse_monitor", "inspect", "ckpt_0009.pt", "--json"))
    assert (found["layout"], found["encoder"], found["epoch"]) == ("example-lab", "averaged", 10)
    evaluation = evaluation_of(example, "ckpt_0009.pt")
    assert (evaluation["status"], evaluation["source"]["layout"]) == ("scored", "example-lab")


@pytest.mark.slow
def test_family_of_the_example_is_inspected_and_scored(example):
    found = json.loads(example("-m", "dse_monitor", "inspect", "mixer.pth", "--json"))
    assert (found["network"], found["num_tokens"]) == ("example mixer 48x2, patch 8", 64)
    evaluation = evaluation_of(example, "mixer.pth")
    assert (evaluation["status"], evaluation["source"]["arch"]) == ("scored", found["network"])


@pytest.mark.slow
def test_sink_of_the_example_receives_the_test_alert(example):
    watch = ("-m", "dse_monitor", "watch", "run", "--images", "images", "--test-alert")
    assert "\u2713 lines:" in example(*watch, "--alert", "lines:alerts.jsonl")
    code = "import json; print(json.loads(open('alerts.jsonl').read())['kind'])"
    assert example("-c", code) == "test\n"


@pytest.mark.slow
def test_contract_tests_of_the_tables_hold_for_the_example(example):
    """They go over what is installed too, so that authors of plugins can use them."""
    tests = EXAMPLE.parents[1] / "tests"
    files = ("trainers/test_contract.py", "checkpoints/test_adding.py", "alerts/test_adding.py")
    paths = [tests / file for file in files]
    options = (
        "-v",
        "-n0",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tests.parent,
        "-c",
        tests.parent / "pyproject.toml",
    )
    out = example("-m", "pytest", *options, "-k", "simclr or example or lines", *paths)
    for case in ("[simclr]", "[example-lab]", "[example-mixer]", "[lines]"):
        assert case in out
