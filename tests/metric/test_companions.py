import math

import pytest
import torch

from dse_monitor.metric import companions
from dse_monitor.metric.companions import alpha_req, rankme
from dse_monitor.metric.components import NonFiniteFeatures


def waves(rows, width):
    """Features that are the same on every machine."""
    i = torch.arange(1, rows + 1, dtype=torch.float64)[:, None]
    j = torch.arange(1, width + 1, dtype=torch.float64)
    return torch.sin(i * j * 0.37 + i**2 * 0.011) * j**-0.7 + 0.5


def with_spectrum(singular_values, rows, seed=0):
    """Features with given singular values whose columns have mean zero."""
    generator = torch.Generator().manual_seed(seed)
    width = len(singular_values)
    left = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(left - left.mean(0))[0]
    right = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    return left * torch.as_tensor(singular_values, dtype=torch.float64) @ right


# alpha: reptrix 0.1.0, get_alpha; RankMe: its get_rank of numpy's singular values (its get_rankme centres the
# features and takes the variances instead, which is not the paper's definition).
@pytest.mark.parametrize(
    ("rows", "width", "alpha", "rank"),
    [(500, 160, 1.4239089079227238, 27.83780188196554), (200, 60, 3.701993981677693, 14.59514960982278)],
)
def test_both_equal_an_independent_implementation(rows, width, alpha, rank):
    assert alpha_req(waves(rows, width)) == pytest.approx(alpha, rel=1e-6)  # its PCA runs another route
    assert rankme(waves(rows, width)) == pytest.approx(rank, rel=1e-9)


def test_both_equal_reptrix_where_it_is_installed():
    numpy = pytest.importorskip("numpy")
    alpha = pytest.importorskip("reptrix.alpha", exc_type=ImportError)
    spectrum = pytest.importorskip("reptrix.rankme", exc_type=ImportError)
    rows = with_spectrum([k**-0.8 for k in range(1, 121)], 400)
    assert alpha_req(rows) == pytest.approx(alpha.get_alpha(rows)[0], rel=1e-6)
    assert rankme(rows) == pytest.approx(spectrum.get_rank(numpy.linalg.svd(rows.numpy())[1]), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_rankme_counts_equal_directions(rank):
    rows = with_spectrum([2.0] * rank + [0.0] * (16 - rank), 200)
    assert rankme(rows) == pytest.approx(rank, rel=1e-4)  # the epsilon


def test_rankme_is_bounded_by_rows_and_width():
    generator = torch.Generator().manual_seed(0)
    for shape in ((6, 50), (50, 6)):
        assert 1 < rankme(torch.randn(shape, generator=generator)) <= 6.0001


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_of_a_power_law_is_its_exponent(alpha):
    rows = with_spectrum([k ** (-alpha / 2) for k in range(1, 151)], 600)  # eigenvalues are squares
    assert alpha_req(rows) == pytest.approx(alpha, rel=1e-9)
    assert alpha_req(rows + 100) == pytest.approx(alpha, rel=1e-6)  # centred


def test_neither_depends_on_the_scale_or_the_order_of_rows():
    rows = waves(300, 40)
    shuffled = rows[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    for metric in (rankme, alpha_req):
        assert metric(1000 * rows) == pytest.approx(metric(rows), rel=1e-9)
        assert metric(shuffled) == pytest.approx(metric(rows), rel=1e-9)


def test_many_rows_are_summed_in_parts():
    rows = waves(40_000, 12)
    whole = torch.linalg.svdvals(rows)
    share = whole / whole.sum() + 1e-7
    assert rankme(rows) == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-9)


def test_alpha_needs_eigenvalues_to_fit():
    assert math.isnan(alpha_req(waves(100, 14)))
    assert math.isnan(alpha_req(waves(12, 100)))
    assert math.isfinite(alpha_req(waves(100, 15)))


def test_collapsed_features_have_rank_one_and_no_exponent():
    rows = torch.ones(50, 30)
    assert rankme(rows) == pytest.approx(1.0, abs=1e-3)
    assert math.isnan(alpha_req(rows))
    assert math.isfinite(rankme(torch.zeros(50, 30)))


def test_tokens_and_their_means_are_measured():
    features = waves(60, 24 * 9).reshape(60, 9, 24)
    found = companions.measure(features)
    assert found == {
        "rankme_dense": rankme(features.reshape(-1, 24)),
        "rankme_pooled": rankme(features.mean(1)),
        "alpha_req_dense": alpha_req(features.reshape(-1, 24)),
        "alpha_req_pooled": alpha_req(features.mean(1)),
    }


def test_of_many_tokens_some_are_looked_at_all_over_the_set(scenes, monkeypatch):
    features = scenes(400, 9, 24)
    every = companions.measure(features)
    monkeypatch.setattr(companions, "MOST_ROWS", 901)
    some = companions.measure(features)
    chosen = features.reshape(-1, 24)[torch.arange(901) * 3600 // 901]
    assert some["rankme_dense"] == rankme(chosen)
    assert some["alpha_req_dense"] == alpha_req(chosen)
    for name, value in every.items():
        assert some[name] == (value if "pooled" in name else pytest.approx(value, rel=0.1))


def test_single_precision_changes_the_fifth_digit_at_most():
    features = waves(60, 24 * 9).reshape(60, 9, 24)
    single = companions.measure(features.float())
    for name, value in companions.measure(features).items():
        assert single[name] == pytest.approx(value, rel=1e-5)


def test_non_finite_features_and_other_shapes_are_refused():
    features = torch.zeros(4, 9, 16)
    features[1, 2, 3] = math.nan
    with pytest.raises(NonFiniteFeatures, match="not finite"):
        companions.measure(features)
    with pytest.raises(ValueError, match=r"\[B, N, D\]"):
        companions.measure(torch.zeros(4, 16))
    with pytest.raises(ValueError, match="not empty"):
        rankme(torch.zeros(0, 16))
