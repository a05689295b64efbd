"""Batched k-means as the released code of arXiv 2510.17299 runs it, many problems at once.

Shapes: P problems of equal size, N points each, D their width, K clusters.

Written here because no library has it: seeding draws the next centre with probability proportional to the
distance to the nearest chosen centre, not to its square as k-means++ does, and labels may be one update
behind the centroids.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dse_monitor.metric import chunks

MAX_ITERATIONS = 20  # Lloyd iterations; released code, estimator.py
SHIFT_TOLERANCE = (
    1e-4  # Frobenius norm of the centroid shift that counts as converged; released code, estimator.py
)
TOGETHER = 3  # pieces: many small steps cost less for several problems at once, in threads above all; ours


class Clusters(NamedTuple):
    """What k-means found in P problems.

    Attributes:
        labels: cluster of each point, int64 [P, N], of the last assignment.
        centroids: [P, K, D], after the last update: one update ahead of ``labels`` where 20 iterations were
            not enough. A cluster that lost all its points keeps the centroid it had.
    """

    labels: Tensor
    centroids: Tensor


def seeding_draws(problems: int, clusters: int, generator: torch.Generator) -> Tensor:
    """The uniform numbers that k-means needs: float64 [P, K] in [0, 1), drawn on the generator's device.

    All chance is drawn here at once, so that neither pieces nor devices change it.
    """
    return torch.rand(problems, clusters, dtype=torch.float64, generator=generator, device=generator.device)


@torch.no_grad()
def kmeans(points: Tensor, draws: Tensor) -> Clusters:
    """Cluster the points of each problem; no loop over problems or points, and no gradient.

    Args:
        points: float32 or float64 [P, N, D].
        draws: uniform numbers [P, K] of :func:`seeding_draws`, K <= N.

    Returns:
        Labels [P, N] and centroids [P, K, D] on the device of ``points``.
    """
    problems, size, width = points.shape
    draws = draws.to(points.device, non_blocking=True)
    labels = torch.empty(problems, size, dtype=torch.int64, device=points.device)
    centroids = points.new_empty(problems, draws.shape[1], width)
    run_kmeans = _kmeans_leaving if points.device.type == "cpu" else _kmeans_freezing

    def cluster(part: slice) -> None:
        # Distances by products lose digits when the points lie far from the origin.
        centre = points[part].mean(1, keepdim=True)
        labels[part], found = run_kmeans(points[part] - centre, draws[part])
        centroids[part] = found + centre

    item = size * width * points.element_size()
    chunks.run(cluster, chunks.chunks(problems, item, points.device, TOGETHER), points.device)
    return Clusters(labels, centroids)


@torch.no_grad()
def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid [P, K, D] of each point [P, N, D]: int64 [P, N]."""
    labels = torch.empty(points.shape[:2], dtype=torch.int64, device=points.device)

    def nearest(part: slice) -> None:
        centre = centroids[part].mean(1, keepdim=True)
        labels[part] = _nearest(points[part] - centre, centroids[part] - centre)

    item = points[0].numel() * points.element_size()
    chunks.run(nearest, chunks.chunks(points.shape[0], item, points.device), points.device)
    return labels


def _kmeans_leaving(points: Tensor, draws: Tensor) -> Clusters:
    """K-means of several problems together, each until it converges: then it leaves the batch."""
    centroids = _seed(points, draws)
    labels = torch.empty(points.shape[:2], dtype=torch.int64, device=points.device)
    found = torch.empty_like(centroids)
    left = torch.arange(points.shape[0], device=points.device)
    for _ in range(MAX_ITERATIONS):
        labels[left], centroids, moving = _step(points, centroids)
        found[left] = centroids
        if not moving.all():
            left, points, centroids = left[moving], points[moving], centroids[moving]
            if not len(left):
                break
    return Clusters(labels, found)


def _kmeans_freezing(points: Tensor, draws: Tensor) -> Clusters:
    """The same without asking the device what has converged: that is frozen while the others go on."""
    centroids = _seed(points, draws)
    labels = torch.zeros(points.shape[:2], dtype=torch.int64, device=points.device)
    running = torch.ones(points.shape[0], dtype=torch.bool, device=points.device)
    for _ in range(MAX_ITERATIONS):
        new_labels, new_centroids, moving = _step(points, centroids)
        labels = torch.where(running[:, None], new_labels, labels)
        centroids = torch.where(running[:, None, None], new_centroids, centroids)
        running = running & moving
    return Clusters(labels, centroids)


def _step(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One Lloyd iteration: labels [P, N], new centroids [P, K, D], which problems have not converged [P]."""
    labels = _nearest(points, centroids)
    new = _means(points, labels, centroids)
    return labels, new, torch.linalg.vector_norm(new - centroids, dim=(1, 2)) >= SHIFT_TOLERANCE


def _seed(points: Tensor, draws: Tensor) -> Tensor:
    """First centres [P, K, D]. Looping over K is inherent: each draw depends on the centres before it."""
    problems, size, _ = points.shape
    row = torch.arange(problems, device=points.device)[:, None]
    # Not points.square(), which would be as large as they are.
    squares = torch.linalg.vector_norm(points, dim=-1, keepdim=True).square_().mT
    columns = points.mT
    nearest = torch.full_like(squares, torch.inf)
    chosen: list[Tensor] = []
    for uniform in draws.mT[..., None, None].unbind():
        if chosen:
            index = _draw(nearest.sqrt(), uniform)
        else:
            index = (uniform * size).long().clamp_(max=size - 1)
        chosen.append(index)
        distance = torch.baddbmm(squares, points[row, index[:, 0]], columns, alpha=-2)
        distance.add_(squares.gather(2, index)).clamp_(min=0)
        distance.scatter_(2, index, 0.0)  # exactly, whatever the rounding of the products
        nearest = torch.minimum(nearest, distance)
    return points[row, torch.cat(chosen, 2)[:, 0]]


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index per row, uniform [P, 1, 1] to [P, 1, 1], with probability proportional to weights [P, 1, N].

    Any index where all weights are zero.
    """
    # The tiny number is lost in any weight that is not zero.
    cumulative = weights.double().add_(torch.finfo(torch.float64).tiny).cumsum_(-1)
    target = uniform * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=weights.shape[-1] - 1)


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid [P, N]; the square of the point itself does not change the order."""
    squares = centroids.square().sum(-1, keepdim=True)
    return torch.baddbmm(squares, centroids, points.mT, alpha=-2).min(1).indices


def _means(points: Tensor, labels: Tensor, previous: Tensor) -> Tensor:
    """Mean of each cluster's points [P, K, D]; ``previous`` where a cluster has none."""
    # On an accelerator bincount waits for the device, and index_add sums in the order its threads run.
    sums_of = _sums_by_index if points.device.type == "cpu" else _sums_by_product
    sums, counts = sums_of(points, labels, previous.shape[1])
    return torch.where(counts > 0, sums / counts.clamp(min=1), previous)


def _sums_by_index(points: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Sums [P, K, D] and counts [P, K, 1] in one pass over the points."""
    problems, _, width = points.shape
    slots = (labels + torch.arange(problems, device=points.device)[:, None] * clusters).flatten()
    counts = slots.bincount(minlength=problems * clusters).to(points.dtype)
    sums = points.new_zeros(problems * clusters, width).index_add_(0, slots, points.flatten(0, 1))
    return sums.view(problems, clusters, width), counts.view(problems, clusters, 1)


def _sums_by_product(points: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """The same by one matrix product per problem, in a fixed order of summation."""
    member = (labels[:, None] == torch.arange(clusters, device=points.device)[:, None]).to(points.dtype)
    return torch.bmm(member, points), member.sum(-1, keepdim=True)
