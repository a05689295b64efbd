"""Golden files and small runs for the trainers' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import optim
from trainers.method import ParameterGroup, Recipe

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
