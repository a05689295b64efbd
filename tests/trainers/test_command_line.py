"""The flags: one per field of Settings and of the recipe, and errors in one line."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dse_monitor import __version__
from dse_monitor.trainers.blocks import optim
from dse_monitor.trainers.command_line import main
from dse_monitor.trainers.engine import trainer as engine
from dse_monitor.trainers.method import Plan
from dse_monitor.trainers.methods import METHODS, load
from dse_monitor.trainers.methods.dino import DINORecipe
from dse_monitor.trainers.settings import Settings


@pytest.fixture
def called(monkeypatch):
    """What the command line would have trained."""
    calls = []
    monkeypatch.setattr(engine, "train", lambda *given: calls.append(given))
    return calls


def test_every_field_is_a_flag(capsys):
    with pytest.raises(SystemExit):
        main(["dino", "--help"])
    text = capsys.readouterr().out
    for field in [*dataclasses.fields(Settings), *dataclasses.fields(DINORecipe)]:
        flag = field.name.replace("_", "-")  # of a switch that is on, the flag that turns it off
        assert f"--{flag} " in text or f"--no-{flag} " in text, field.name


def test_help_is_read_by_people(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["dino", "--preset", "tiny", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Usage: dse-train dino --data DIR --out RUN [FLAGS]"
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "--epochs INT Passes over the data. (default: 12)" in text
    assert text.index("--data DIR") < text.index("Advanced flags:") < text.index("Recipe, tiny preset:")
    assert "None" not in text


def test_both_states_of_a_switch_can_be_asked_for(called):
    for flag, wanted in (("--no-norm-last-layer", False), ("--norm-last-layer", True)):
        main(["dino", "--data", "scenes", "--out", "r", flag])
        assert called[-1][2].norm_last_layer is wanted


def test_version_is_one_line(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"dse-train {__version__}\n"


def test_a_misspelled_flag_is_answered_with_what_was_meant(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["dino", "--data", "scenes", "--out", "r", "--batchsize", "8"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "dse-train dino: there is no flag --batchsize; did you mean --batch-size?\n"
    )


def test_preset_sets_defaults_and_flags_override_them(called):
    main(
        [
            "dino",
            "--data",
            "scenes",
            "--out",
            "r",
            "--preset",
            "tiny",
            "--epochs",
            "3",
            "--dse-weight",
            "0.001",
        ]
    )
    ((name, method, recipe, settings),) = called
    assert (name, method.__name__) == ("dino", "DINO")
    assert recipe == dataclasses.replace(DINORecipe.tiny(), epochs=3)
    assert settings.dse_weight == 0.001
    main(["dino", "--preset=official", "--data", "scenes", "--out", "r"])
    assert called[1][2] == DINORecipe()


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_is_a_whole_recipe_of_its_own(method, called):
    recipe_type = load(method).recipe_type
    for preset in recipe_type.presets:
        main([method, "--preset", preset, "--data", "scenes", "--out", "r"])
    recipes = [recipe_type(), *(recipe for _, _, recipe, _ in called)]
    assert all(type(recipe) is recipe_type for recipe in recipes)
    assert len(set(recipes)) == 1 + len(recipe_type.presets)


OTHERS = [
    (method, preset) for method in METHODS for preset in load(method).recipe_type.presets if preset != "tiny"
]


@pytest.mark.parametrize(("method", "preset"), OTHERS)
def test_every_other_recipe_fits_its_networks_optimiser_and_schedules(method, preset):
    method_type = load(method)
    recipe = getattr(method_type.recipe_type, preset)()
    plan = Plan(recipe.epochs, 10, recipe.batch_size, 10 * recipe.batch_size)
    with torch.device("meta"):  # no memory, and ViT-H is one of them
        built = method_type(recipe)
        groups = built.parameter_groups()
        optim.build(recipe, groups)
    schedules = built.schedules(plan)
    assert schedules["lr"].shape == (plan.total_steps,)
    assert {group.lr for group in groups} | {group.weight_decay for group in groups} <= {"", *schedules}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["simclr"], "there is no method 'simclr'; the methods are mocov3"),
        (["dinno"], "there is no method 'dinno'; did you mean 'dino'?"),
        (["dino", "--preset", "small"], "expected official or tiny"),
        (["dino", "--preset", "tiny", "--data", "/nowhere", "--out", "{}"], "/nowhere is no folder"),
        (["dino", "--data", "scenes", "--out", "{}", "--keep", "-1"], "--keep is at least 0, got -1"),
        (["dino", "--data", "scenes", "--out", "{}", "--device", "gpu"], "expected auto, cpu, cuda"),
        (["dino", "--data", "", "--out", "{}"], "--data is empty"),
        (["dino", "--data", "scenes", "--out", "{}", "--batch-size", "0"], "--batch-size is at least 1"),
        (["dino", "--data", "scenes", "--out", "/dev/null/out"], "/dev/null/out"),
        (
            "dino --preset tiny --data scenes --out {} --resume --more-epochs 1".split(),
            "has no checkpoint to resume, and --more-epochs needs one",
        ),
        (["dino", "--preset", "tiny", "--data", "scenes", "--out", "{}", "--backbone", "vgg99"], "no model"),
    ],
)
def test_mistakes_are_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([flag.format(tmp_path / "out") for flag in flags])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
