"""Batched k-means as the released code of arXiv 2510.17299 runs it, many problems at once.

Shapes: P problems of equal size, N points each, D their width, K clusters.

Written here because no library has it: seeding draws the next centre with probability proportional to the distance to
the nearest chosen centre, not to its square as k-means++ does, and labels may be one update behind the centroids.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dse_monitor.metric.chunks import chunks

MAX_ITERATIONS = 20  # Lloyd iterations; released code, estimator.py
SHIFT_TOLERANCE = (
    1e-4  # Frobenius norm of the centroid shift that counts as converged; released code, estimator.py
)


class Clusters(NamedTuple):
    """What k-means found in P problems.

    Attributes:
        labels: cluster of each point, int64 [P, N], of the last assignment.
        centroids: float [P, K, D], after the last update: one update ahead of ``labels`` where 20 iterations were
            not enough. A cluster that lost all its points keeps the centroid it had.
    """

    labels: Tensor
    centroids: Tensor


def seeding_draws(problems: int, clusters: int, generator: torch.Generator) -> Tensor:
    """The uniform numbers that k-means needs: float64 [P, K] in [0, 1), drawn on the generator's device.

    All randomness is drawn here at once, so that neither chunks nor devices change it.
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
    draws = draws.to(points.device)
    labels = torch.empty(problems, size, dtype=torch.int64, device=points.device)
    centroids = points.new_empty(problems, draws.shape[1], width)
    for part in chunks(problems, size * width * points.element_size(), points.device):
        labels[part], centroids[part] = _kmeans_in_memory(points[part], draws[part])
    return Clusters(labels, centroids)


@torch.no_grad()
def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid [P, K, D] of each point [P, N, D]: int64 [P, N]."""
    labels = torch.empty(points.shape[:2], dtype=torch.int64, device=points.device)
    for part in chunks(points.shape[0], points[0].numel() * points.element_size(), points.device):
        centre = centroids[part].mean(1, keepdim=True)
        labels[part] = _nearest(points[part] - centre, centroids[part] - centre)
    return labels


def _kmeans_in_memory(points: Tensor, draws: Tensor) -> Clusters:
    centre = points.mean(1, keepdim=True)
    points = (
        points - centre
    )  # distances by matrix products lose digits when the points lie far from the origin
    centroids = _seed(points, draws)
    labels = torch.zeros(points.shape[:2], dtype=torch.int64, device=points.device)
    running = torch.ones(points.shape[0], 1, dtype=torch.bool, device=points.device)
    for _ in range(MAX_ITERATIONS):
        new_labels = _nearest(points, centroids)
        new_centroids = _means(points, new_labels, centroids)
        shift = torch.linalg.vector_norm(new_centroids - centroids, dim=(1, 2))
        labels = torch.where(running, new_labels, labels)
        centroids = torch.where(running[..., None], new_centroids, centroids)
        running = running & (shift >= SHIFT_TOLERANCE)[:, None]
        # Asking costs nothing on a CPU; on an accelerator it would wait for the device in every iteration.
        if points.device.type == "cpu" and not running.any():
            break
    return Clusters(labels, centroids + centre)


def _seed(points: Tensor, draws: Tensor) -> Tensor:
    """First centres [P, K, D]. The loop over K is inherent: each draw depends on the centres before it."""
    problems, size, width = points.shape
    row = torch.arange(problems, device=points.device)
    squares = points.square().sum(-1)
    centroids = points.new_empty(problems, draws.shape[1], width)
    nearest = torch.full_like(squares, torch.inf)
    index = (draws[:, 0] * size).long().clamp_(max=size - 1)
    for k in range(draws.shape[1]):
        if k > 0:
            index = _draw(nearest.sqrt(), draws[:, k])
        chosen = points[row, index]
        centroids[:, k] = chosen
        products = torch.bmm(points, chosen[..., None])[..., 0]
        distance = squares - 2 * products + squares[row, index][:, None]
        distance[row, index] = 0  # exactly, whatever the rounding of the products
        nearest = torch.minimum(nearest, distance.clamp_(min=0))
    return centroids


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index per row [P] with probability proportional to ``weights`` [P, N]; any index where all are zero."""
    cumulative = weights.double().cumsum(1)
    total = cumulative[:, -1:]
    cumulative = torch.where(
        total > 0, cumulative, torch.arange(1, weights.shape[1] + 1, device=weights.device)
    )
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid [P, N]; the square of the point itself does not change the order."""
    squares = centroids.square().sum(-1)[:, None]
    return torch.baddbmm(squares, points, centroids.mT, alpha=-2).argmin(-1)


def _means(points: Tensor, labels: Tensor, previous: Tensor) -> Tensor:
    """Mean of each cluster's points [P, K, D]; ``previous`` where a cluster has none."""
    clusters = torch.arange(previous.shape[1], device=points.device)
    member = (labels[:, None] == clusters[:, None]).to(points.dtype)
    counts = member.sum(-1, keepdim=True)
    return torch.where(counts > 0, torch.bmm(member, points) / counts.clamp(min=1), previous)
