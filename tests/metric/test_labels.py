from typing import Any

import pytest
import torch

from dse_monitor.metric import PseudoLabels, measure
from dse_monitor.metric.clustering import kmeans
from dse_monitor.metric.labels import first_labels
from dse_monitor.metric.measurement import as_tokens, draw_chance

SETTINGS: dict[str, Any] = {"group": 4, "local_clusters": 3, "global_clusters": 5, "seed": 3}


@pytest.fixture
def features():
    return torch.randn(10, 16, 12, generator=torch.Generator().manual_seed(0))


def test_labels_are_those_that_measure_uses(features):
    """Radii depend on nothing but the labels: given these, `measure` finds the same numbers."""
    local, shared = first_labels(features, 10, **SETTINGS)
    tokens, _ = as_tokens(features, True)
    draws = draw_chance(features.shape, 4, 3, 5, 3).groups
    members = [slice(0, 4), slice(4, 8), slice(8, 10)]
    centroids = [
        kmeans(tokens[part].reshape(1, -1, 12), draws[g : g + 1]).centroids[0]
        for g, part in enumerate(members)
    ]
    given = PseudoLabels(
        local_labels=local % 3,
        global_labels=[shared[part].reshape(-1) % 5 for part in members],
        global_centroids=centroids,
    )
    ours = measure(features, pseudo_labels=given, **SETTINGS)
    theirs = measure(features, **SETTINGS)
    assert ours.m_intra_image == pytest.approx(theirs.m_intra_image, rel=1e-6)
    assert ours.m_intra_batch == pytest.approx(theirs.m_intra_batch, rel=1e-6)
    assert ours.m_inter == pytest.approx(theirs.m_inter, rel=1e-6)


def test_the_first_images_have_the_labels_they_have_among_all(features):
    every = first_labels(features, 10, **SETTINGS)
    for count in (1, 4, 6):
        for some, all_of in zip(first_labels(features, count, **SETTINGS), every, strict=True):
            assert torch.equal(some, all_of[:count])


def test_numbers_are_not_shared_by_images_or_groups(features):
    local, shared = first_labels(features, 10, **SETTINGS)
    assert [sorted(set((row // 3).tolist())) for row in local] == [[image] for image in range(10)]
    assert [sorted(set((row // 5).tolist())) for row in shared] == [[image // 4] for image in range(10)]


def test_more_images_than_there_are_is_all_of_them(features):
    assert first_labels(features[:2], 6, **SETTINGS)[0].shape == (2, 16)
