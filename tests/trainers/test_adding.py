"""What a method file may know, and that adding one takes the file, its line and its golden vector."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dse_monitor.checkpoints import load_encoder
from dse_monitor.errors import PluginError
from dse_monitor.plugins import Registry
from dse_monitor.trainers import methods
from dse_monitor.trainers.command_line import main
from dse_monitor.trainers.methods import METHODS, load

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).parent

# Everything a method may be made of; the engine, its settings, its data, its files and its report are not.
PARTS = {
    "backbones",
    "blocks.centre",
    "blocks.heads",
    "blocks.masks",
    "blocks.networks",
    "blocks.objectives",
    "blocks.optim",
    "blocks.queues",
    "blocks.relations",
    "blocks.teacher",
    "blocks.views",
    "distributed",
    "method",
}
OURS = "dse_monitor.trainers."
LIBRARIES = {"PIL", "numpy", "timm", "torch"}
STANDARD = {"__future__", "collections", "dataclasses", "math", "typing"}
FOREIGN = ("torch.optim", "torch.distributed", "torch.nn.parallel", "torch.utils.tensorboard", "torch.amp")
# the engine's: to make an optimiser and to use it
DEEDS = {"build", "LARS", "InnerLARS", "LARC"}
CALLS = {"backward", "step", "zero_grad", "save", "load", "print", "DistributedDataParallel"}


def imported(tree: ast.AST) -> set[str]:
    """Full names of all that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(name: str) -> str:
    """The module below trainers that an imported name lies in or is."""
    rest = name.removeprefix(OURS).split(".")
    return ".".join(rest[:2] if rest[0] == "blocks" else rest[:1])


def strange(source: str) -> list[str]:
    """What a method file has no business with."""
    tree = ast.parse(source)
    found = []
    for name in imported(tree):
        if name.startswith(OURS):
            known = part_of(name) in PARTS
        else:
            known = name.split(".")[0] in LIBRARIES | STANDARD and not name.startswith(FOREIGN)
        found += [] if known else [name]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id == "optim" and node.attr in DEEDS) or f"{node.value.id}.{node.attr}" in FOREIGN:
                found.append(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found += [f"{called}()"] if called in CALLS else []
    return sorted(found)


@pytest.mark.parametrize("name", METHODS)
def test_method_file_knows_nothing_of_the_engines_work(name):
    assert strange((ROOT / "trainers" / "methods" / f"{name}.py").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("part", sorted(PARTS))
def test_parts_of_methods_lead_to_no_engine_either(part):
    path = ROOT.joinpath("trainers", *part.split(".")).with_suffix(".py")
    found = imported(ast.parse(path.read_text(encoding="utf-8")))
    ours = {name for name in found if name.startswith("dse_monitor")}
    assert {part_of(name) for name in ours} <= PARTS
    others = {name.split(".")[0] for name in found - ours}
    assert not others & {"argparse", "tyro", "logging", "rich", "tensorboard"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import argparse", "argparse"),
        ("import logging", "logging"),
        (
            "from torch.nn.parallel import DistributedDataParallel",
            "torch.nn.parallel.DistributedDataParallel",
        ),
        ("import torch.distributed as dist", "torch.distributed"),
        ("from torch import optim as o", "torch.optim"),
        ("from dse_monitor.trainers.settings import Settings", "dse_monitor.trainers.settings.Settings"),
        ("from dse_monitor.metric import DSERegularizer", "dse_monitor.metric.DSERegularizer"),
        ("x = optim.LARS([], 0.1, 0.9)", "optim.LARS"),
        ("loss.backward()", "backward()"),
        ("print(loss)", "print()"),
    ],
)
def test_the_walk_finds_what_it_looks_for(line, found):
    assert found in strange(line)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_golden_vector_and_tests_that_read_it(name):
    assert (ROOT / "tests" / "data" / "golden" / f"{name}.pt").stat().st_size > 0
    assert f'golden("{name}")' in (TESTS / "methods" / f"test_{name}.py").read_text(encoding="utf-8")


FILE = '''
"""Two views of an image shall have the same features. Written for this test."""
import dataclasses
from dataclasses import dataclass
import torch
from dse_monitor.trainers import backbones
from dse_monitor.trainers.blocks import optim, views
from dse_monitor.trainers.method import Method, Recipe, StepOutput

@dataclass(frozen=True, kw_only=True)
class AgreeRecipe(Recipe):
    """Numbers.

    Attributes:
        pull: weight of the one term.
    """
    backbone: str = "resnet50"
    batch_size: int = 64
    epochs: int = 10
    lr: float = 1e-3
    weight_decay: float = 0.1
    pull: float = 1.0

    @classmethod
    def tiny(cls):
        return dataclasses.replace(cls(), backbone="resnet_mini", image_size=64, warmup_epochs=1)

class Agree(Method):
    """Agreement."""
    recipe_type = AgreeRecipe
    evaluated = "backbone."
    batch_coupled = "batch norm"
    differences = "There is no code to differ from."

    def __init__(self, recipe):
        super().__init__(recipe)
        self.backbone_spec = backbones.describe(recipe.backbone, recipe.image_size)
        self.backbone = backbones.build(self.backbone_spec)

    def views(self):
        return views.MultiCrop([views.moco_v2_crop(self.recipe.image_size)] * 2)

    def forward(self, views, progress):
        """Dense: the map of the first view."""
        first, second = (backbones.features(self.backbone, image) for image in views.images)
        loss = self.recipe.pull * (first.pooled - second.pooled).square().mean()
        return StepOutput(loss, first.dense)

    def schedules(self, plan):
        steps = plan.total_steps
        return {"lr": optim.constant(self.recipe.lr, steps), "weight_decay": optim.constant(0.1, steps)}
'''


def test_method_is_added_by_its_file_and_one_line(tmp_path, monkeypatch, small, run):
    (tmp_path / "agree.py").write_text(FILE, encoding="utf-8")
    assert strange(FILE) == []
    monkeypatch.setattr(
        methods, "__path__", [*methods.__path__, str(tmp_path)]
    )  # as if it lay beside the others
    monkeypatch.setitem(METHODS, "agree", "dse_monitor.trainers.methods.agree:Agree")  # the line
    assert load("agree").__name__ == "Agree"
    run("agree", small("agree", pull=2.0), tmp_path / "run", dse_weight=1e-3)
    assert load_encoder(tmp_path / "run" / "checkpoint_0002.pth").epoch == 2


# Methods of packages ----------------------------------------------------------------------------------------


@pytest.fixture
def install(packages, monkeypatch):
    """Installs a package with the method ``agree`` from its source."""

    def install_method(source):
        registry = Registry(methods.REGISTRY.group, methods.REGISTRY.what, METHODS, methods.check)
        monkeypatch.setattr(methods, "REGISTRY", registry)
        packages.add("mine", "[dse_monitor.methods]\nagree = my_method:Agree\n", my_method=source)

    return install_method


def test_method_of_a_package_trains_as_one_of_the_tree(install, tmp_path, capsys):
    install(FILE)
    flags = "--preset tiny --data scenes --scenes 16 --batch-size 8 --epochs 1 --warmup-epochs 0 --device cpu"
    main(["agree", *flags.split(), "--workers", "0", "--out", str(tmp_path / "run"), "--pull", "2"])
    assert "agree, resnet_mini" in capsys.readouterr().out
    assert load_encoder(tmp_path / "run" / "checkpoint_0001.pth").epoch == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import not_to_be_found\n", "ModuleNotFoundError: No module named 'not_to_be_found'"),
        ("class Agree: pass\n", "expected a subclass of Method"),
        (FILE.replace("    recipe_type = AgreeRecipe\n", ""), "recipe_type must be a subclass of Recipe"),
        (
            FILE.replace("    lr: float = 1e-3\n", "    lr: float\n"),
            "AgreeRecipe lacks a default or a preset",
        ),
        (FILE.replace("def tiny(cls)", "def small(cls)"), "AgreeRecipe lacks a default or a preset"),
        (FILE.replace("dataclasses.replace(cls(),", "dict("), "a preset of AgreeRecipe returns another type"),
    ],
)
def test_method_that_breaks_the_contract_is_one_line_where_it_is_asked_for(install, capsys, source, reason):
    install(source)
    assert load("dino").__name__ == "DINO"
    with pytest.raises(PluginError, match=reason):
        load("agree")
    with pytest.raises(SystemExit) as ended:
        main(["agree", "--preset", "tiny"])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the method 'agree' of mine 1.0")
    assert error.count("\n") == 1


def test_method_of_the_example_follows_the_rules_of_those_in_the_tree():
    example = ROOT / "examples" / "plugin" / "dse_monitor_example" / "simclr.py"
    assert strange(example.read_text(encoding="utf-8")) == []
