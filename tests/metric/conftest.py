"""Golden vectors of the released code as the metric takes them, the plain oracle, and features to measure."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from dse_monitor.metric import PseudoLabels

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RELEASED = _module(Path(__file__).with_name("released_structure.py"))


def _cases(name):
    cases = {}
    for key, value in torch.load(GOLDEN / name, weights_only=True).items():
        case, field = key.split("/")
        cases.setdefault(case, {})[field] = value
    return cases


def _labels(case):
    groups = range(case["n_groups"])
    return PseudoLabels(
        case["local_labels"],
        [case[f"global_labels_{g}"] for g in groups],
        [case[f"global_centroids_{g}"] for g in groups],
        case.get("position_permutation"),
    )


METRIC_CASES = _cases("dse_metric.pt")
REGULARIZER_CASES = _cases("dse_regularizer.pt")
SPREAD = json.loads((GOLDEN / "dse_spread.json").read_text())


@pytest.fixture(params=sorted(METRIC_CASES))
def metric_case(request):
    """One case of the released metric: (fields, settings of measure(), pseudo-labels, spread over seeds)."""
    case = METRIC_CASES[request.param]
    settings = {name: case[name] for name in ("group", "normalize", "local_clusters", "global_clusters")}
    return case, settings, _labels(case), SPREAD[request.param]


@pytest.fixture(params=sorted(REGULARIZER_CASES))
def regularizer_case(request):
    """One case of the released regulariser: (fields, settings of DSERegularizer(), pseudo-labels)."""
    case = REGULARIZER_CASES[request.param]
    settings = {name: case[name] for name in ("normalize", "local_clusters", "global_clusters")}
    return case, settings, _labels(case)


@pytest.fixture(scope="session")
def released():
    """The plain implementation that fast paths must equal."""
    return RELEASED


@pytest.fixture(scope="session")
def scenes():
    """Draw features [B, N, D] of images that hold three of a dozen kinds of region, from one population."""

    def draw(images, positions, width, seed=0):
        shape = torch.Generator().manual_seed(1)
        spectrum = torch.arange(1, width + 1) ** -0.5
        kinds = torch.randn(12, width, generator=shape) * spectrum * 3
        common = torch.randn(width, generator=shape)
        chance = torch.Generator().manual_seed(seed)
        present = torch.randint(12, (images, 3), generator=chance)
        region = torch.randint(3, (images, positions), generator=chance)
        tokens = kinds[present.gather(1, region)] + common
        tokens += torch.randn(images, 1, width, generator=chance) * spectrum * 1.5
        contrast = 0.5 + 1.5 * torch.rand(images, 1, 1, generator=chance)
        return tokens + torch.randn(images, positions, width, generator=chance) * spectrum * contrast

    return draw
