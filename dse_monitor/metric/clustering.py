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
SEEDED_TOGETHER = 2  # pieces: seeding is many small steps, which cost less for several problems at once; ours


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

    def cluster(part: slice) -> None:
        labels[part], centroids[part] = _kmeans(points[part], draws[part])

    item = size * width * points.element_size()
    chunks.run(cluster, chunks.chunks(problems, item, points.device, SEEDED_TOGETHER), points.device)
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


def _kmeans(points: Tensor, draws: Tensor) -> Clusters:
    """K-means of as many problems as are seeded at once."""
    centre = points.mean(1, keepdim=True)
    points = points - centre  # distances by products lose digits when the points lie far from the origin
    seeds = _seed(points, draws)
    item = points[0].numel() * points.element_size()
    found = [_lloyd(points[part], seeds[part]) for part in chunks.chunks(len(points), item, points.device)]
    labels, centroids = (torch.cat(part) for part in zip(*found, strict=True))
    return Clusters(labels, centroids + centre)


def _lloyd(points: Tensor, centroids: Tensor) -> Clusters:
    """Iterations of as many problems as are worked on at once; a converged one is frozen until all are."""
    labels = torch.zeros(points.shape[:2], dtype=torch.int64, device=points.device)
    running = torch.ones(points.shape[0], dtype=torch.bool, device=points.device)
    for _ in range(MAX_ITERATIONS):
        new_labels = _nearest(points, centroids)
        new_centroids = _means(points, new_labels, centroids)
        shift = torch.linalg.vector_norm(new_centroids - centroids, dim=(1, 2))
        labels = torch.where(running[:, None], new_labels, labels)
        centroids = torch.where(running[:, None, None], new_centroids, centroids)
        running = running & (shift >= SHIFT_TOLERANCE)
        # Asking costs nothing on a CPU; on an accelerator it would wait for the device in every iteration.
        if points.device.type == "cpu" and not running.any():
            break
    return Clusters(labels, centroids)


def _seed(points: Tensor, draws: Tensor) -> Tensor:
    """First centres [P, K, D]. Looping over K is inherent: each draw depends on the centres before it."""
    problems, size, _ = points.shape
    row = torch.arange(problems, device=points.device)
    # Not points.square(), which would be as large as they are.
    squares = torch.linalg.vector_norm(points, dim=-1).square_()
    nearest = torch.full_like(squares, torch.inf)
    chosen = torch.empty(problems, draws.shape[1], dtype=torch.int64, device=points.device)
    for k in range(draws.shape[1]):
        if k > 0:
            index = _draw(nearest.sqrt(), draws[:, k])
        else:
            index = (draws[:, 0] * size).long().clamp_(max=size - 1)
        chosen[:, k] = index
        distance = torch.baddbmm(squares[:, None], points[row, index][:, None], points.mT, alpha=-2)[:, 0]
        distance.add_(squares[row, index][:, None]).clamp_(min=0)
        distance[row, index] = 0  # exactly, whatever the rounding of the products
        nearest = torch.minimum(nearest, distance)
    return points[row[:, None], chosen]


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index per row [P] with probability proportional to weights [P, N]; any index where all are zero."""
    # The tiny number is lost in any weight that is not zero.
    cumulative = weights.double().add_(torch.finfo(torch.float64).tiny).cumsum_(1)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)


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
