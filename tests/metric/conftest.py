"""Golden vectors of the released code as the metric takes them."""

import json
from pathlib import Path

import pytest
import torch

from dse_monitor.metric import PseudoLabels

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
COMPONENTS = ("M_inter", "M_intra_image", "M_intra_batch", "M_dim")


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
