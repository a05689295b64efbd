"""TF32 and its kin are off while numbers are made, and on again afterwards if they were."""

from types import SimpleNamespace

import pytest
import torch

from dse_monitor.metric import DSERegularizer, companions, labels, measure, measurement, regularizer, terms
from dse_monitor.metric.precision import full_float32, with_float64


def settings():
    """What each interface says: float32 products of cuBLAS, of oneDNN, and convolutions of cuDNN."""
    one_dnn = getattr(torch.backends.mkldnn, "matmul", None)  # with its own setting from torch 2.9 on
    if hasattr(one_dnn, "fp32_precision"):
        backends = torch.backends.cuda.matmul, one_dnn, getattr(torch.backends.cudnn, "conv")  # noqa: B009
        return tuple(getattr(backend, "fp32_precision") for backend in backends)  # noqa: B009
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


EXACT = {("ieee", "ieee", "ieee"), ("highest", False)}


@pytest.fixture(params=["highest", "high", "medium"])
def allowed(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield settings()
    torch.set_float32_matmul_precision(before)


def test_settings_are_exact_within_and_as_before_afterwards(allowed):
    with full_float32():
        assert settings() in EXACT
    assert settings() == allowed


def test_settings_come_back_after_an_error(allowed):
    with pytest.raises(ZeroDivisionError), full_float32():
        _ = 1 / 0
    assert settings() == allowed


def test_both_interfaces_still_work_afterwards(allowed):
    said = torch.get_float32_matmul_precision()
    with full_float32():
        pass
    assert torch.get_float32_matmul_precision() == said
    assert torch.backends.cuda.matmul.allow_tf32 == (said != "highest")


@pytest.mark.parametrize("compute", [measure, DSERegularizer()])
def test_numbers_are_made_in_full(allowed, compute, monkeypatch):
    seen = []
    original = terms.feature_scale

    def spy(tokens):
        seen.append(settings())
        return original(tokens)

    monkeypatch.setattr(terms, "feature_scale", spy)
    compute(torch.randn(8, 16, 12, generator=torch.Generator().manual_seed(0)))
    assert seen
    assert set(seen) <= EXACT
    assert settings() == allowed


def test_half_precision_products_on_the_cpu_would_change_the_number():
    """What the guard is for, where this CPU can round products at all."""
    a, b = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(1))
    exact = a @ b
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32():
            assert torch.equal(a @ b, exact)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("module", "compute"),
    [
        (measurement, measure),
        (companions, companions.measure),
        (labels, lambda features: labels.first_labels(features, 1)),
        (regularizer, DSERegularizer()),
    ],
)
def test_features_are_taken_to_where_float64_is(module, compute, monkeypatch):
    moved = []
    monkeypatch.setattr(module, "with_float64", lambda features: moved.append(1) or features)
    compute(torch.randn(8, 16, 12, generator=torch.Generator().manual_seed(0)))
    assert moved


def test_only_apples_gpus_lack_float64():
    features = torch.zeros(2, 3, 4)
    assert with_float64(features) is features
    apple = SimpleNamespace(device=torch.device("mps"), cpu=lambda: features)
    assert with_float64(apple) is features
