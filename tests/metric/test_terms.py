"""The terms on features whose answer is known, and the gradients they pass."""

import math

import pytest
import torch

from dse_monitor.metric import spectra, terms


def test_parallel_tokens_use_one_direction():
    tokens = torch.arange(1.0, 7)[:, None] * torch.tensor([1.0, -2, 3, 0.5])
    assert terms.effective_dimension(tokens) == pytest.approx(1 / 4, rel=1e-6)


def test_orthonormal_tokens_use_every_direction():
    assert terms.effective_dimension(torch.eye(5)) == pytest.approx(1.0)
    assert terms.effective_dimension(torch.eye(8)[:5]) == pytest.approx(1.0)


def test_zero_tokens_count_as_one_direction():
    assert terms.effective_dimension(torch.zeros(4, 9)) == pytest.approx(1 / 4)


def test_two_directions_of_unequal_weight():
    tokens = torch.diag(torch.tensor([3.0, 1.0]))  # p = 3/4, 1/4
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 2
    assert terms.effective_dimension(tokens) == pytest.approx(expected, rel=1e-6)


def test_orthonormal_points_lie_sqrt_two_apart():
    points = torch.eye(4)[None]
    distances = terms.offsets_to_nearest_other(points, torch.arange(4)[None], points).norm(dim=-1)
    torch.testing.assert_close(distances, torch.full((1, 4), math.sqrt(2)))


def test_a_single_cluster_has_no_other():
    points = torch.randn(2, 5, 3)
    offsets = terms.offsets_to_nearest_other(points, torch.zeros(2, 5, dtype=torch.int64), points[:, :1])
    assert (offsets == 0).all()


def test_scale_of_equal_tokens_is_exactly_zero():
    assert terms.feature_scale(torch.full((300, 7, 5), 0.1)).value == 0


def test_scale_gradient_equals_autograd():
    features = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    (features - features.mean((0, 1))).norm(dim=-1).mean().backward()
    fixed = features.detach()
    gradient = torch.ones_like(fixed)
    terms.add_scale_gradient(gradient, fixed, terms.feature_scale(fixed), torch.tensor(3.0))
    torch.testing.assert_close(gradient, 1 + 3 * features.grad)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 5, 3), (300, 7), (7, 300), (250, 230), (230, 250)])
def test_singular_values_equal_a_decomposition(shape):
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(matrices).flip(-1)
    torch.testing.assert_close(spectra.singular_values(matrices), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        spectra.singular_values(matrices.requires_grad_()).detach(), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 5, 3)])
def test_singular_value_gradients_are_exact(shape):
    matrices = torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    weights = torch.linspace(-1, 2, min(shape[-2:]), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: (spectra.singular_values(x) * weights).sum(), matrices)
    assert torch.autograd.gradcheck(terms.effective_dimension, matrices)


def test_nuclear_norm_gradient_of_repeated_values_is_the_orthogonal_factor():
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q.requires_grad_()
    spectra.singular_values(turn).sum().backward()
    torch.testing.assert_close(turn.grad, turn.detach())


@pytest.mark.parametrize("shape", [(3, 40, 50), (2, 3, 50, 40), (70, 33, 33)])
def test_a_device_without_batches_is_helped_by_the_processor(shape, monkeypatch):
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gram = matrices @ matrices.mT
    gains = torch.rand(shape[:-2], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    there = spectra.root_values(gram), *spectra.inverse_root(gram, gains)
    asked = []
    monkeypatch.setattr(spectra, "_loops", lambda device: asked.append(device) or True)
    here = spectra.root_values(gram), *spectra.inverse_root(gram, gains)
    assert asked
    for ours, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_zero_singular_values_pass_nothing_back():
    matrix = torch.diag(torch.tensor([2.0, 0.0, 0.0])).requires_grad_()
    spectra.singular_values(matrix).sum().backward()
    torch.testing.assert_close(matrix.grad, torch.diag(torch.tensor([1.0, 0.0, 0.0])))
