"""The metric and the regulariser against what the released code of arXiv 2510.17299 returned."""

import pytest
import torch

from dse_monitor.metric import DSERegularizer, measure

COMPONENTS = ("M_inter", "M_intra_image", "M_intra_batch", "M_dim")


@pytest.mark.parametrize("component", COMPONENTS)
def test_component_equals_released_code_for_given_clusters(metric_case, component):
    case, settings, pseudo_labels, _ = metric_case
    measured = measure(case["features"], pseudo_labels=pseudo_labels, **settings)
    # float32 sums in the released code
    assert getattr(measured, component.lower()) == pytest.approx(case[component], rel=1e-5)


def test_dse_equals_released_code_for_given_clusters(metric_case):
    case, settings, pseudo_labels, _ = metric_case
    measured = measure(case["features"], pseudo_labels=pseudo_labels, **settings)
    assert measured.dse(1.0) == pytest.approx(case["DSE_lambda1"], rel=1e-5)


@pytest.mark.parametrize("component", COMPONENTS)
def test_mean_over_seeds_agrees_with_released_code(metric_case, component):
    case, settings, _, spread = metric_case
    values = torch.tensor(
        [getattr(measure(case["features"], seed=seed, **settings), component.lower()) for seed in range(16)]
    )
    released = spread[component]
    error = (values.var() / 16 + released["std"] ** 2 / spread["seeds"]) ** 0.5
    assert abs(values.mean() - released["mean"]) < 4 * error


def test_regularizer_value_equals_released_code(regularizer_case):
    case, settings, pseudo_labels = regularizer_case
    term = DSERegularizer(weight=0.5, **settings)(case["features"], pseudo_labels)
    assert float(term) == pytest.approx(-0.5 * case["DSE"], rel=1e-5)


def test_regularizer_gradient_equals_released_code(regularizer_case):
    case, settings, pseudo_labels = regularizer_case
    features = case["features"].clone().requires_grad_()
    DSERegularizer(weight=1.0, **settings)(features, pseudo_labels).backward()
    difference = (-features.grad - case["grad"]).norm() / case["grad"].norm()
    assert difference < 1e-4  # float32 decompositions in the released code
