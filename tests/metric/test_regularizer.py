"""The regulariser: its gradient, its chance, its behaviour where features collapse."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse_monitor.metric import DSERegularizer, PseudoLabels


def _labels(released, features, regularizer, seed=0):
    tokens = torch.nn.functional.normalize(features, dim=-1) if regularizer.normalize else features
    local, labels, centroids, _ = released.cluster(
        tokens,
        regularizer.group,
        regularizer.local_clusters,
        regularizer.global_clusters,
        torch.Generator().manual_seed(seed),
    )
    return PseudoLabels(local, labels, centroids)


def _gradient(regularizer, features, labels=None):
    features = features.detach().clone().requires_grad_()
    term = regularizer(features, labels)
    term.backward()
    return term.detach(), features.grad


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    images=st.integers(1, 7),
    positions=st.integers(2, 20),
    width=st.integers(3, 24),
    global_clusters=st.integers(3, 9),
    normalize=st.booleans(),
    seed=st.integers(0, 99),
)
def test_value_and_gradient_equal_autograd_through_the_plain_definition(
    released, images, positions, width, global_clusters, normalize, seed
):
    generator = torch.Generator().manual_seed(seed)
    features = (torch.randn(images, positions, width, generator=generator) + 0.3).double()
    regularizer = DSERegularizer(1.0, normalize, global_clusters=global_clusters)
    given_labels = _labels(released, features, regularizer, seed)
    plain = features.clone().requires_grad_()
    expected = released.regularizer_dse(
        plain,
        regularizer.group,
        normalize,
        given_labels.local_labels,
        given_labels.global_labels,
        given_labels.global_centroids,
    )
    term, gradient = _gradient(regularizer, features, given_labels)
    assert float(term) == pytest.approx(-float(expected.detach()), rel=1e-5)
    (slope,) = torch.autograd.grad(expected, plain)
    torch.testing.assert_close(-gradient, slope, rtol=1e-4, atol=1e-5 * float(slope.abs().max()))


@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4])
def test_gradient_of_ill_conditioned_float32_features_is_that_of_float64(released, condition):
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(0, -math.log10(condition), 48)
    features = torch.randn(16, 30, 48, generator=generator) * spectrum + torch.randn(48, generator=generator)
    given_labels = _labels(released, features, DSERegularizer(1.0, False, global_clusters=9))
    _, single = _gradient(DSERegularizer(1.0, False, global_clusters=9), features, given_labels)
    _, double = _gradient(DSERegularizer(1.0, False, global_clusters=9), features.double(), given_labels)
    # float32 products lose as many digits as the smallest extent of a cluster lies below its largest
    assert (single - double).norm() < (1e-6 + 3e-8 * condition) * double.norm()


@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_passes_gradcheck(released, normalize):
    features = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    regularizer = DSERegularizer(1.0, normalize, local_clusters=2, global_clusters=4)
    given_labels = _labels(released, features, regularizer)
    assert torch.autograd.gradcheck(lambda x: regularizer(x, given_labels), features.requires_grad_())


def _collapsed():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(9, 9, 8, generator=generator)
    zeros = tokens.clone()
    zeros[2] = 0
    return {
        "all tokens equal": torch.full((9, 9, 8), 0.37),
        "all tokens zero": torch.zeros(9, 9, 8),
        "rank one": torch.randn(9, 9, 1, generator=generator) * torch.randn(8, generator=generator),
        "repeated singular values": torch.cat([torch.eye(8), -torch.eye(8)])[:9].repeat(9, 1, 1),
        "images equal": tokens[:1].repeat(9, 1, 1),
        "some tokens zero": zeros,
        "one image": tokens[:1],
        "one token": tokens[:, :1],
        "one token of one image": tokens[:1, :1],
        "fewer tokens than clusters": tokens[:, :2],
        "nearly equal": 1 + tokens * 1e-6,
    }


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("case", sorted(_collapsed()))
def test_gradients_are_finite_where_features_collapse(case, normalize):
    term, gradient = _gradient(DSERegularizer(1.0, normalize), _collapsed()[case])
    assert term.isfinite()
    assert gradient.isfinite().all()


def test_a_step_against_the_term_raises_dse(released, scenes):
    features = scenes(16, 16, 12)
    regularizer = DSERegularizer(1.0)
    given_labels = _labels(released, features, regularizer)
    term, gradient = _gradient(regularizer, features, given_labels)
    regularizer(features - 1e-2 * gradient / gradient.norm(), given_labels)
    assert float(regularizer.last.dse) > -float(term)


def test_weight_scales_value_and_gradient(scenes):
    features = scenes(8, 9, 8)
    one, slope = _gradient(DSERegularizer(1.0), features)
    small, small_slope = _gradient(DSERegularizer(), features)
    torch.testing.assert_close(small, one * 1e-3)
    torch.testing.assert_close(small_slope, slope * 1e-3)


def test_upstream_gradient_is_respected(scenes):
    features = scenes(8, 9, 8).requires_grad_()
    (3 * DSERegularizer(1.0)(features)).backward()
    torch.testing.assert_close(features.grad, 3 * _gradient(DSERegularizer(1.0), features)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(scenes, dtype):
    features = scenes(8, 9, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        term, gradient = _gradient(DSERegularizer(1.0), features)
    expected, expected_gradient = _gradient(DSERegularizer(1.0), features.float())
    assert term.dtype == torch.float32
    assert torch.equal(term, expected)
    assert torch.equal(gradient, expected_gradient.to(dtype))


def test_strided_features_get_the_gradient_of_contiguous_ones(scenes):
    features = scenes(8, 9, 8)
    maps = features.transpose(1, 2).contiguous().requires_grad_()
    DSERegularizer(1.0, normalize=False)(maps.transpose(1, 2)).backward()
    expected = _gradient(DSERegularizer(1.0, normalize=False), features)[1]
    torch.testing.assert_close(maps.grad.transpose(1, 2), expected)


def test_non_finite_features_give_a_nan_term_and_gradient(scenes):
    features = scenes(8, 9, 8)
    features[1, 2, 3] = math.inf
    term, gradient = _gradient(DSERegularizer(1.0), features)
    assert term.isnan()
    assert gradient.isnan().all()


def test_without_gradient_the_value_is_the_same(scenes):
    features = scenes(8, 9, 8)
    with torch.no_grad():
        value = DSERegularizer(1.0)(features)
    assert not value.requires_grad
    torch.testing.assert_close(value, _gradient(DSERegularizer(1.0), features)[0])


def test_chance_goes_on_where_a_saved_training_stopped(scenes):
    features = scenes(8, 25, 8)
    first = DSERegularizer(1.0, seed=5)
    first(features)
    saved = copy.deepcopy(first.state_dict())
    second = DSERegularizer(1.0, seed=0)
    second.load_state_dict(saved)
    assert [float(first(features)) for _ in range(3)] == [float(second(features)) for _ in range(3)]


def test_every_call_draws_anew_and_leaves_the_global_generator(scenes):
    features = scenes(8, 25, 8)
    regularizer = DSERegularizer(1.0)
    before = torch.get_rng_state()
    assert float(regularizer(features)) != float(regularizer(features))
    assert torch.equal(torch.get_rng_state(), before)


def test_last_holds_the_detached_terms(scenes):
    regularizer = DSERegularizer(0.5)
    assert regularizer.last is None
    features = scenes(8, 9, 8).requires_grad_()
    term = regularizer(features)
    last = regularizer.last
    assert not last.dse.requires_grad
    torch.testing.assert_close(-0.5 * last.dse, term.detach())
    dse = last.m_inter - (last.m_intra_image + last.m_intra_batch) / 2 + last.m_dim
    torch.testing.assert_close(last.dse, dse)


def test_module_can_be_copied_and_printed():
    assert "weight=0.001" in repr(copy.deepcopy(DSERegularizer()))


def test_group_follows_the_cluster_counts():
    assert DSERegularizer(local_clusters=3, global_clusters=24).group == 8
    assert DSERegularizer(local_clusters=5, global_clusters=3).group == 1


def test_what_is_no_dense_batch_is_refused():
    with pytest.raises(ValueError, match=r"\[B, N, D\]"):
        DSERegularizer()(torch.zeros(4, 8))
