"""Golden files and small runs for the trainers' tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dse_monitor.trainers.blocks import optim
from dse_monitor.trainers.engine.trainer import train
from dse_monitor.trainers.method import Method, ParameterGroup, Plan, Recipe
from dse_monitor.trainers.methods import load
from dse_monitor.trainers.settings import Settings

torch.set_num_threads(1)  # small tensors: threads only get in each other's way


GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """golden("dino") -> the flat dictionary of tests/data/golden/dino.pt."""
    return lambda name: torch.load(GOLDEN / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="session")
def layerwise_steps() -> Callable[..., None]:
    """Three optimiser steps on the tensors ``<prefix>.{weight,bias,zero_weight}`` of a golden file, compared.

    ``settings`` are set on the group of matrices and on that of vectors; with one entry all share a group.
    """

    def check(g: dict[str, Any], prefix: str, recipe: Recipe, *settings: dict[str, float]) -> None:
        names = ("weight", "bias", "zero_weight")
        parameters = {name: torch.nn.Parameter(g[f"{prefix}.{name}0"].clone()) for name in names}
        split = len(settings) == 2
        matrices = [(n, p) for n, p in parameters.items() if p.ndim > 1 or not split]
        groups = [ParameterGroup("matrices", matrices)]
        if split:
            groups.append(ParameterGroup("vectors", [("bias", parameters["bias"])], adapt=False))
        optimizer = optim.build(recipe, groups)
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values)
        for step in range(3):
            for name, parameter in parameters.items():
                parameter.grad = g[f"{prefix}.grad_{name}"][step].clone()
            optimizer.step()
            for name, parameter in parameters.items():
                expected = g[f"{prefix}.{name}_after"][step]
                torch.testing.assert_close(parameter.data, expected, rtol=1e-5, atol=1e-7)

    return check


@pytest.fixture(scope="session")
def distillation_schedules() -> Callable[..., None]:
    """The three schedules of a method of DINO's family, made from its golden file's numbers, compared."""

    def check(g: dict[str, Any], method_type: type[Method]) -> None:
        recipe = dataclasses.replace(
            method_type.recipe_type.tiny(),
            lr=g["sched/base_lr"],
            final_lr=g["sched/min_lr"],
            warmup_epochs=g["sched/warmup_epochs"],
            weight_decay=g["sched/wd_start"],
            final_weight_decay=g["sched/wd_end"],
            teacher_momentum=g["sched/momentum_start"],
        )
        batch = g["sched/batch_per_gpu"] * g["sched/world_size"]
        plan = Plan(g["sched/epochs"], g["sched/iters_per_epoch"], batch, images=1)
        schedules = method_type(recipe).schedules(plan)
        for ours, theirs in (("lr", "lr"), ("weight_decay", "wd"), ("teacher_momentum", "momentum")):
            np.testing.assert_allclose(schedules[ours], g[f"sched/{theirs}"].numpy(), atol=1e-12, rtol=0)

    return check


@pytest.fixture(scope="session")
def small() -> Callable[..., Recipe]:
    """small("dino", epochs=1) -> the tiny preset with batches of eight and with queues in use at once."""

    def recipe(name: str, **changes: Any) -> Recipe:
        found = load(name).recipe_type.tiny()
        values = {"batch_size": 8, "epochs": 2, "warmup_epochs": 0, "freeze_prototypes_steps": 0}
        if name == "swav":
            values |= {"queue_length": 16, "queue_from_epoch": 0}
        known = {field.name for field in dataclasses.fields(found)}
        chosen = {key: value for key, value in values.items() if key in known}
        return dataclasses.replace(found, **{**chosen, **changes})

    return recipe


@pytest.fixture(scope="session")
def run() -> Callable[..., None]:
    """run("dino", recipe, folder, method=None, **settings) trains on 16 scenes on the CPU to the end."""

    def train_on_scenes(
        name: str, recipe: Recipe, out: Path, method: type[Method] | None = None, **changes: Any
    ) -> None:
        values = {"data": "scenes", "scenes": 16, "device": "cpu", "workers": 0, "log_every": 1}
        train(name, method or load(name), recipe, Settings(out=out, **{**values, **changes}))

    return train_on_scenes


def _difference(a: Any, b: Any, where: str = "") -> str:
    if isinstance(a, torch.Tensor):
        return "" if a.dtype == b.dtype and torch.equal(a, b) else where
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where}: other keys {a.keys() ^ b.keys()}"
        return next(filter(None, (_difference(a[k], b[k], f"{where}/{k}") for k in a)), "")
    if isinstance(a, (list, tuple)):
        return _difference(dict(enumerate(a)), dict(enumerate(b)), where)
    return "" if a == b else where


@pytest.fixture(scope="session")
def difference() -> Callable[[Any, Any], str]:
    """Where two nested states first differ, tensors bit for bit; empty if nowhere."""
    return _difference
