"""Radii of clusters: known answers, and float32 where it is enough."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse_monitor.metric import radius


def _plain(tokens, width):
    """Radius of one cluster [m, D] by a decomposition of its centred tokens."""
    tokens = tokens.double()
    return float(torch.linalg.svdvals(tokens - tokens.mean(0)).sum() / max(len(tokens) - 1, width) ** 0.5)


def _on_a_line(count, width, noise, generator):
    line = torch.randn(width, generator=generator)
    along = torch.rand(count, 1, generator=generator)
    return along * line + noise * torch.randn(count, width, generator=generator)


def test_radius_of_two_tokens():
    points = torch.zeros(1, 2, 5)
    points[0, 1, 0] = 2
    radii = radius.cluster_radii(points, torch.zeros(1, 2, dtype=torch.int64), 1)
    assert radii[0, 0] == pytest.approx(math.sqrt(2 / 5))


def test_radius_of_a_cross():
    cross = torch.cat([torch.eye(3), -torch.eye(3)])[None]  # singular values sqrt(2), three times
    radii = radius.cluster_radii(cross, torch.zeros(1, 6, dtype=torch.int64), 1)
    assert radii[0, 0] == pytest.approx(3 * math.sqrt(2 / 5))


def test_single_tokens_have_no_radius():
    assert radius.cluster_radii(torch.randn(1, 3, 4), torch.tensor([[0, 1, 2]]), 4).tolist() == [[0, 0, 0, 0]]


def test_equal_tokens_have_none():
    points = torch.full((2, 9, 16), 0.3)
    assert (radius.cluster_radii(points, torch.arange(9).expand(2, -1) % 2, 2) == 0).all()


@pytest.mark.parametrize("width", [7, 64], ids=["wide", "narrow"])
def test_padding_changes_no_radius(width):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 90, width, generator=generator)
    labels = torch.randint(4, (3, 90), generator=generator)
    batched = radius.cluster_radii(points, labels, 4)
    for problem in range(3):
        for k in range(4):
            tokens = points[problem][labels[problem] == k]
            assert batched[problem, k] == pytest.approx(_plain(tokens, width), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 60),
    st.sampled_from([16, 64, 200]),
    st.floats(0, 3),
    st.sampled_from([1.0, 1e-2, 1e-4, 0.0]),
    st.integers(0, 2**31),
)
def test_any_cluster_equals_a_decomposition(count, width, decay, apart, seed):
    """Whatever the fall of the spectrum, the distance of close tokens and the common part are."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    tokens = torch.randn(count, width, generator=generator) * torch.arange(1, width + 1) ** -decay @ turn
    tokens[0] = tokens[-1] + apart * tokens[0]
    tokens = torch.nn.functional.normalize(tokens + torch.randn(width, generator=generator), dim=-1)
    found = radius.cluster_radii(tokens[None], torch.zeros(1, count, dtype=torch.int64), 1)
    assert float(found) == pytest.approx(_plain(tokens, width), rel=2e-5, abs=1e-7)


def test_clusters_that_float32_would_get_wrong_are_done_again(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    round_ones = torch.randn(2, 40, 64, generator=generator)
    lines = torch.stack([_on_a_line(40, 64, 1e-5, generator) for _ in range(2)])
    points = torch.stack([round_ones, lines], 1).flatten(0, 1)
    labels = torch.zeros(4, 40, dtype=torch.int64)
    plain = [pytest.approx(_plain(tokens, 64), rel=1e-5) for tokens in points]
    assert radius.cluster_radii(points, labels, 1)[:, 0].tolist() == plain
    monkeypatch.setattr(radius, "FLOAT32_SPREAD", -1.0)
    unguarded = radius.cluster_radii(points, labels, 1)[:, 0].tolist()
    assert [value == right for value, right in zip(unguarded, plain, strict=True)] == [True, False] * 2


@pytest.mark.parametrize("size", [1e-22, 1e-15, 1e15, 3e19])
def test_sizes_near_the_ends_of_float32_change_nothing(size):
    tokens = size * torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    found = radius.cluster_radii(tokens[None], torch.zeros(1, 30, dtype=torch.int64), 1)
    assert float(found) == pytest.approx(_plain(tokens, 64), rel=1e-6, abs=0)


def test_float64_tokens_are_kept_exact():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1, 30, 64, dtype=torch.float64, generator=generator)
    found = radius.cluster_radii(points, torch.zeros(1, 30, dtype=torch.int64), 1)
    assert float(found) == pytest.approx(_plain(points[0], 64), rel=1e-12)
