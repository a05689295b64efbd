"""Batched k-means: as released, one problem at a time or many."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dse_monitor.metric import clustering


def _draws(problems, clusters, seed=0):
    return clustering.seeding_draws(problems, clusters, torch.Generator().manual_seed(seed))


@pytest.fixture
def blobs():
    """Six problems of 60 points in 5 separated blobs: (points [6, 60, 8], blob of each point [60])."""
    generator = torch.Generator().manual_seed(0)
    blob = torch.arange(60) % 5
    centres = 10 * torch.randn(6, 5, 8, generator=generator)
    return centres[:, blob] + 0.1 * torch.randn(6, 60, 8, generator=generator), blob


def test_problems_do_not_touch_each_other(blobs):
    points, _ = blobs
    draws = _draws(6, 5)
    together = clustering.kmeans(points, draws)
    for problem in range(6):
        alone = clustering.kmeans(points[problem : problem + 1], draws[problem : problem + 1])
        assert torch.equal(alone.labels[0], together.labels[problem])
        torch.testing.assert_close(alone.centroids[0], together.centroids[problem])


def test_converged_centroids_are_the_means_of_their_points(blobs):
    points, _ = blobs
    labels, centroids = clustering.kmeans(points, _draws(6, 4))
    for problem in range(6):
        for k in range(4):
            mean = points[problem][labels[problem] == k].mean(0)
            torch.testing.assert_close(centroids[problem, k], mean, rtol=1e-4, atol=1e-4)


def test_labels_are_the_nearest_of_the_converged_centroids(blobs):
    points, _ = blobs
    labels, centroids = clustering.kmeans(points, _draws(6, 4))
    assert torch.equal(labels, torch.cdist(points, centroids).argmin(-1))
    assert torch.equal(clustering.assign(points, centroids), labels)


def test_next_centre_is_drawn_by_distance_and_not_by_its_square():
    points = torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1).repeat(4000, 1, 1)
    draws = _draws(4000, 2)
    draws[:, 0] = 0  # the first centre is the point at 0
    centroids = clustering._seed(points, draws)
    far = (centroids[:, 1, 0] == 3).double().mean()
    assert far == pytest.approx(3 / 4, abs=0.03)  # by squares 9 / 10


def test_empty_cluster_keeps_its_centroid():
    points = torch.tensor([[0.0, 0.0, 0.0, 4.0]]).view(1, 4, 1)
    previous = torch.tensor([[[0.0], [9.0]]])
    means = clustering._means(points, torch.zeros(1, 4, dtype=torch.int64), previous)
    assert means.flatten().tolist() == [1.0, 9.0]


def test_equal_points_give_one_cluster_at_their_place():
    labels, centroids = clustering.kmeans(torch.full((3, 9, 4), 0.3), _draws(3, 3))
    assert (labels == labels[:, :1]).all()
    torch.testing.assert_close(centroids, torch.full((3, 3, 4), 0.3))


def test_as_many_clusters_as_points_put_each_on_its_own():
    points = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0))
    labels, _ = clustering.kmeans(points, _draws(5, 6))
    assert (labels.sort(1).values == torch.arange(6)).all()


def test_far_from_the_origin_is_clustered_the_same(blobs):
    points, _ = blobs
    draws = _draws(6, 5)
    near, far = clustering.kmeans(points, draws).labels, clustering.kmeans(points + 1000, draws).labels
    assert torch.equal(near, far)


def test_sums_by_index_equal_sums_by_product(blobs):
    points, _ = blobs
    labels = torch.randint(4, (6, 60), generator=torch.Generator().manual_seed(0))
    by_index = clustering._sums_by_index(points, labels, 5)
    by_product = clustering._sums_by_product(points, labels, 5)
    torch.testing.assert_close(by_index, by_product)
    assert (by_index[1].flatten(1)[:, 4] == 0).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(4, 40), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31))
def test_leaving_equals_freezing(problems, size, width, clusters, seed):
    """Problems converge at different iterations, and neither way may let one go on or stop too soon."""
    generator = torch.Generator().manual_seed(seed)
    tightness = 10.0 ** -torch.arange(problems)[:, None, None]
    places = torch.randint(clusters, (problems, size), generator=generator)
    points = 3 * torch.randn(problems, clusters, width, generator=generator)
    points = points[torch.arange(problems)[:, None], places]
    points = points + tightness * torch.randn(problems, size, width, generator=generator)
    draws = clustering.seeding_draws(problems, clusters, generator)
    leaving = clustering._kmeans_leaving(points, draws)
    freezing = clustering._kmeans_freezing(points, draws)
    assert torch.equal(leaving.labels, freezing.labels)
    torch.testing.assert_close(leaving.centroids, freezing.centroids)
