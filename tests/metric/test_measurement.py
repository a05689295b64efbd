"""measure() and average(): equal to the plain definition, invariant where it is, defined everywhere."""

import math
from dataclasses import astuple, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse_monitor.metric import Components, NonFiniteFeatures, PseudoLabels, average, measure

VALUES = ("m_inter", "m_intra_image", "m_intra_batch", "m_dim")


def _values(components):
    return torch.tensor([getattr(components, name) for name in VALUES], dtype=torch.float64)


def _clustered(released, features, group, local_clusters, global_clusters, normalize, seed):
    tokens = torch.nn.functional.normalize(features, dim=-1) if normalize else features
    generator = torch.Generator().manual_seed(seed)
    return released.cluster(tokens, group, local_clusters, global_clusters, generator)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    images=st.integers(1, 11),
    positions=st.integers(2, 40),
    width=st.integers(2, 40),
    group=st.integers(1, 5),
    local_clusters=st.integers(1, 4),
    global_clusters=st.integers(2, 9),
    normalize=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fast_path_equals_the_plain_definition(
    released, images, positions, width, group, local_clusters, global_clusters, normalize, seed
):
    features = torch.randn(images, positions, width, generator=torch.Generator().manual_seed(seed)) + 0.3
    clusters = _clustered(released, features, group, local_clusters, global_clusters, normalize, seed)
    plain = released.components(features.double(), group, normalize, *_double(clusters))
    fast = measure(features, group=group, normalize=normalize, pseudo_labels=PseudoLabels(*clusters))
    torch.testing.assert_close(_values(fast), torch.stack(plain).double(), rtol=1e-5, atol=1e-6)


def _double(clusters):
    local, labels, centroids, permutation = clusters
    return local, labels, [centroid.double() for centroid in centroids], permutation


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_ill_conditioned_features_equal_a_float64_decomposition(released, condition):
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(0, -math.log10(condition), 32)
    features = torch.randn(24, 40, 32, generator=generator) * spectrum + torch.randn(32, generator=generator)
    clusters = _clustered(released, features, 8, 3, 6, False, 0)
    plain = released.components(features.double(), 8, False, *_double(clusters))
    fast = measure(features, normalize=False, pseudo_labels=PseudoLabels(*clusters))
    torch.testing.assert_close(_values(fast), torch.stack(plain), rtol=2e-6, atol=0)


def test_own_clusters_agree_with_the_plain_ones_on_average(released, scenes):
    features = scenes(16, 25, 24)
    fast = torch.stack([_values(measure(features, global_clusters=8, seed=s)) for s in range(24)])
    plain = torch.stack(
        [torch.stack(released.measure(features, global_clusters=8, seed=s)).double() for s in range(24)]
    )
    error = ((fast.var(0) + plain.var(0)) / 24).sqrt()
    assert ((fast.mean(0) - plain.mean(0)).abs() < 4 * error).all()


def test_same_seed_gives_the_same_numbers(scenes):
    features = scenes(20, 16, 24)
    assert measure(features, seed=3) == measure(features, seed=3)
    assert measure(features, seed=3) != measure(features, seed=4)


def test_numbers_do_not_depend_on_the_threads_of_torch(scenes):
    features = scenes(24, 16, 24)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = measure(features)
        torch.set_num_threads(3)
        together = measure(features)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert astuple(alone) == pytest.approx(astuple(together), rel=1e-6)


def test_global_generator_is_not_touched(scenes):
    before = torch.get_rng_state()
    measure(scenes(9, 16, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_cluster_counts_leave_the_other_draws_alone(scenes):
    features = scenes(16, 16, 24)
    assert measure(features, global_clusters=5).m_intra_image == measure(features).m_intra_image
    assert measure(features, local_clusters=5).m_inter == measure(features).m_inter
    assert measure(features, local_clusters=5).m_dim == measure(features).m_dim


def test_features_are_left_as_they_were(scenes):
    features = scenes(9, 16, 8)
    kept = features.clone()
    measure(features)
    measure(features, normalize=False)
    assert torch.equal(features, kept)


def test_strided_features_count_like_contiguous_ones(scenes):
    maps = scenes(9, 16, 24).transpose(1, 2).contiguous()  # [B, D, N] as a convolution gives them
    assert measure(maps.transpose(1, 2)) == measure(maps.transpose(1, 2).contiguous())


def test_inference_tensors_and_modes_are_accepted(scenes):
    features = scenes(9, 16, 24)
    with torch.inference_mode():
        assert measure(features * 1) == measure(features)
        inferred = features * 1
    assert measure(inferred) == measure(features)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_scale_of_features_does_not_matter(released, scenes, factor):
    features = scenes(12, 16, 24)
    local, labels, centroids, permutation = _clustered(released, features, 8, 3, 8, False, 0)
    one = measure(
        features, normalize=False, pseudo_labels=PseudoLabels(local, labels, centroids, permutation)
    )
    scaled = PseudoLabels(local, labels, [centroid * factor for centroid in centroids], permutation)
    other = measure(features * factor, normalize=False, pseudo_labels=scaled)
    torch.testing.assert_close(_values(other), _values(one), rtol=1e-5, atol=0)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), normalize=st.booleans())
def test_rotation_of_features_does_not_matter(released, scenes, seed, normalize):
    features = scenes(10, 12, 16, seed)
    clusters = local, labels, centroids, permutation = _clustered(released, features, 4, 3, 6, normalize, 0)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(seed))).Q
    one = measure(features, group=4, normalize=normalize, pseudo_labels=PseudoLabels(*clusters))
    turned = PseudoLabels(local, labels, [centroid @ turn for centroid in centroids], permutation)
    other = measure(features @ turn, group=4, normalize=normalize, pseudo_labels=turned)
    torch.testing.assert_close(_values(other), _values(one), rtol=1e-5, atol=0)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999))
def test_order_of_tokens_does_not_matter(released, scenes, seed):
    features = scenes(8, 12, 16, seed)
    local, labels, centroids, permutation = _clustered(released, features, 4, 3, 6, True, 0)
    one = measure(features, group=4, pseudo_labels=PseudoLabels(local, labels, centroids, permutation))
    moved = torch.rand(8, 12, generator=torch.Generator().manual_seed(seed)).argsort(1)
    groups = torch.stack(labels).view(8, 12).gather(1, moved).view(2, 48)
    other = measure(
        features.gather(1, moved[..., None].expand(-1, -1, 16)),
        group=4,
        pseudo_labels=PseudoLabels(
            local.gather(1, moved), list(groups), centroids, moved.argsort(1).gather(1, permutation)
        ),
    )
    torch.testing.assert_close(_values(other), _values(one), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(scenes, dtype):
    features = scenes(9, 16, 24).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measure(features) == measure(features.float())


def _degenerate():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(10, 9, 8, generator=generator)
    line = torch.randn(10, 9, 1, generator=generator) * torch.randn(8, generator=generator)
    zeros = tokens.clone()
    zeros[2], zeros[5, 3] = 0, 0
    return {
        "all tokens equal": torch.full((10, 9, 8), 0.37),
        "all tokens zero": torch.zeros(10, 9, 8),
        "rank one": line,
        "two distinct tokens": torch.where(torch.arange(9)[:, None] < 4, tokens[0, 0], tokens[0, 1]).repeat(
            10, 1, 1
        ),
        "images equal": tokens[:1].repeat(10, 1, 1),
        "some tokens zero": zeros,
        "one image": tokens[:1],
        "one token": tokens[:, :1],
        "one token of one image": tokens[:1, :1],
        "width one": tokens[..., :1],
        "fewer tokens than clusters": tokens[:, :2],
        "fewer images than a group": tokens[:3],
        "tiny": tokens * 1e-18,
        "huge": tokens * 1e15,
        "nearly equal": 1 + tokens * 1e-6,
    }


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("case", sorted(_degenerate()))
def test_degenerate_features_are_defined(case, normalize):
    measured = measure(_degenerate()[case], normalize=normalize)
    assert all(math.isfinite(getattr(measured, name)) for name in VALUES)
    assert 0 < measured.m_dim <= 1 + 1e-9
    assert min(measured.m_inter, measured.m_intra_image, measured.m_intra_batch) >= 0
    errors = [getattr(measured, f"{name}_se") for name in VALUES]
    assert all(math.isnan(error) or 0 <= error < math.inf for error in errors)


@pytest.mark.parametrize("normalize", [True, False])
def test_equal_tokens_have_no_structure_and_one_direction(normalize):
    measured = measure(torch.full((10, 9, 8), 0.37), normalize=normalize)
    assert (measured.m_inter, measured.m_intra_image, measured.m_intra_batch) == (0, 0, 0)
    assert measured.m_dim == pytest.approx(1 / 8, rel=1e-6)


def test_rank_one_features_use_one_direction():
    line = torch.linspace(-1, 1, 320)[torch.randperm(320, generator=torch.Generator().manual_seed(0))]
    features = line.view(20, 16, 1) * torch.arange(1.0, 13)
    assert measure(features, normalize=False).m_dim == pytest.approx(1 / 12, rel=1e-4)


def test_orthonormal_tokens_have_full_dimension():
    assert measure(torch.eye(6)[:, None].repeat(1, 4, 1)).m_dim == pytest.approx(1.0)


def test_one_token_per_image_counts_one_before_the_scale():
    features = torch.randn(9, 1, 8, generator=torch.Generator().manual_seed(0))
    scale = (features - features.mean((0, 1))).norm(dim=-1).mean()
    assert measure(features, normalize=False).m_intra_image == pytest.approx(float(1 / scale), rel=1e-6)


def test_one_group_has_no_error_of_separability(scenes):
    measured = measure(scenes(8, 9, 8))
    assert math.isnan(measured.separability_se)
    assert math.isnan(measured.dse_se(1.0))
    assert measured.m_intra_image_se > 0


def test_nan_and_infinity_are_counted_and_their_images_named(scenes):
    features = scenes(12, 9, 8)
    features[3, 2, 1] = math.nan
    features[7, :2, 0] = math.inf
    for normalize in (True, False):
        with pytest.raises(
            NonFiniteFeatures, match=r"1 NaN and 2 infinite of 864 .* 2 of 12 images \(index 3, 7\)"
        ):
            measure(features, normalize=normalize)


def test_overflowing_features_are_refused(scenes):
    for normalize in (True, False):
        with pytest.raises(NonFiniteFeatures, match="overflow"):
            measure(scenes(4, 9, 8) * 1e25, normalize=normalize)


@pytest.mark.parametrize(
    "features",
    [torch.zeros(4, 8), torch.zeros(2, 0, 8), torch.zeros(2, 3, 4, dtype=torch.int64)],
    ids=["two dimensions", "no tokens", "integers"],
)
def test_what_is_no_dense_batch_is_refused(features):
    with pytest.raises(ValueError, match=r"expected floating point \[B, N, D\]"):
        measure(features)


@pytest.mark.parametrize("name", ["group", "local_clusters", "global_clusters"])
def test_counts_below_one_are_refused(name, scenes):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        measure(scenes(4, 9, 8), **{name: 0})


def test_pseudo_labels_that_do_not_fit_are_refused(released, scenes):
    features = scenes(6, 9, 8)
    local, labels, centroids, permutation = _clustered(released, features, 4, 3, 5, True, 0)
    wrong = {
        "local_labels": PseudoLabels(local[:, 1:], labels, centroids, permutation),
        "expected one of each for 2 groups": PseudoLabels(local, labels[:1], centroids[:1], permutation),
        "position_permutation": PseudoLabels(local, labels, centroids, permutation[1:]),
        "label 4 among 2": PseudoLabels(local, labels, [c[:2] for c in centroids], permutation),
        "group 0": PseudoLabels(local, labels, [c[:, 1:] for c in centroids], permutation),
    }
    for message, given_labels in wrong.items():
        with pytest.raises(ValueError, match=message):
            measure(features, group=4, pseudo_labels=given_labels)


def test_average_is_the_mean_with_errors_of_independent_batches():
    one = Components(
        m_inter=1.0, m_intra_image=0.5, m_intra_batch=0.7, m_dim=0.2, m_inter_se=0.3, m_intra_image_se=0.1,
        m_intra_batch_se=0.2, m_dim_se=0.03, separability_se=0.4, separability_dim_cov=0.01,
        images=10, tokens=4, width=6,
    )  # fmt: skip
    two = replace(
        one, m_inter=3.0, m_inter_se=0.4, separability_se=0.3, separability_dim_cov=-0.002, images=20
    )
    both = average([one, two])
    assert both.m_inter == 2.0
    assert both.m_inter_se == pytest.approx(0.25)
    assert both.separability_se == pytest.approx(0.25)
    assert both.separability_dim_cov == pytest.approx(0.008 / 4)
    assert (both.images, both.tokens, both.width) == (30, 4, 6)
    assert both.dse(1.0) == pytest.approx((one.dse(1.0) + two.dse(1.0)) / 2)


def test_average_of_one_batch_is_that_batch(scenes):
    measured = measure(scenes(24, 9, 8))
    assert astuple(average([measured])) == pytest.approx(astuple(measured), rel=1e-12)


def test_average_refuses_nothing_and_mixtures(scenes):
    with pytest.raises(ValueError, match="at least one batch"):
        average([])
    with pytest.raises(ValueError, match="different"):
        average([measure(scenes(4, 9, 8)), measure(scenes(4, 16, 8))])
