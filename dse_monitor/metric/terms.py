"""The terms of DSE as functions of features: arXiv 2510.17299, and its released code where the two differ.

Shapes: B images, N tokens of an image, P problems (images or groups of images) of N points, D feature width,
K clusters, M rows of a matrix, R = min(M, D).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dse_monitor.metric import chunks
from dse_monitor.metric.spectra import singular_values

RADIUS_WITHOUT_CLUSTERS = 1.0  # radius where no cluster has two tokens; released code, estimator.py


class Scale(NamedTuple):
    """The unit of radii and separation, and what it takes to differentiate it.

    Attributes:
        value: mean distance of a token to the mean token, float64 [], >= 0; exactly 0 where all tokens are
            equal.
        mean: the mean token [D].
        direction: mean unit vector from the mean token to a token [D]: minus the slope of ``value`` in
            ``mean``.
        image_means: mean token of each image less ``mean``, [B, D].
        image_distances: mean distance to ``mean`` within each image, float64 [B].
    """

    value: Tensor
    mean: Tensor
    direction: Tensor
    image_means: Tensor
    image_distances: Tensor


@torch.no_grad()
def feature_scale(features: Tensor) -> Scale:
    """Scale of features [B, N, D]; :func:`feature_scale_gradient` is its slope."""
    images, positions, width = features.shape
    pieces = list(chunks.chunks(images, positions * width * features.element_size(), features.device))
    origin = features[:1, :1]  # taken off first: exact for close numbers, and zero for equal ones
    image_means = features.new_empty(images, width)
    distances = features.new_empty(images, positions)
    directions = features.new_empty(images, width)

    def means(part: slice) -> None:
        image_means[part] = (features[part] - origin).mean(1)

    def from_mean(part: slice) -> None:
        offsets = (features[part] - origin).sub_(mean)
        distances[part] = torch.linalg.vector_norm(offsets, dim=-1)
        directions[part] = torch.bmm(_inverse(distances[part])[:, None], offsets)[:, 0]

    chunks.run(means, pieces, features.device)
    mean = image_means.mean(0)
    chunks.run(from_mean, pieces, features.device)
    distance = distances.mean(1, dtype=torch.float64)
    return Scale(
        distance.mean(), origin[0, 0] + mean, directions.mean(0) / positions, image_means - mean, distance
    )


def feature_scale_gradient(features: Tensor, scale: Scale, images: int) -> Tensor:
    """Slope of the scale of B = ``images`` images in some of their tokens: [b, N, D] to [b, N, D]."""
    offsets = features - scale.mean
    unit = offsets * _inverse(torch.linalg.vector_norm(offsets, dim=-1, keepdim=True))
    return (unit - scale.direction) / (images * features.shape[1])


def nearest_other_distance(points: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Distance of points to the nearest centroid but its own cluster's; the paper squares it, the code not.

    Orthonormal points that are their own centroids give sqrt(2). With a single cluster there is no other: 0.

    Args:
        points: [P, N, D]; differentiable.
        labels: own cluster of each point, int64 [P, N].
        centroids: [P, K, D], constants of the gradient.

    Returns:
        Distances [P, N] in the dtype of ``points``.
    """
    if centroids.shape[1] < 2:
        return points.sum(-1) * 0
    with torch.no_grad():
        centre = centroids.mean(1, keepdim=True)
        near = centroids - centre
        order = torch.baddbmm(near.square().sum(-1, keepdim=True), near, (points - centre).mT, alpha=-2)
        other = order.scatter_(1, labels[:, None], torch.inf).min(1).indices
        first = torch.arange(centroids.shape[0], device=points.device)[:, None] * centroids.shape[1]
        nearest = centroids.flatten(0, 1)[other + first]
    return torch.linalg.vector_norm(points - nearest, dim=-1)


def cluster_sizes(labels: Tensor, clusters: int) -> Tensor:
    """Tokens of each cluster: labels int64 [P, N] to int64 [P, K]."""
    sizes = torch.zeros(labels.shape[0], clusters, dtype=torch.int64, device=labels.device)
    return sizes.scatter_add_(1, labels, torch.ones_like(labels))


class Members(NamedTuple):
    """Clusters of nearly one size, to be decomposed together.

    Attributes:
        which: their indices among all P * K clusters, int64 [C].
        rows: indices of their tokens among all P * N, int64 [C, M]; past a cluster's size they mean nothing.
        counts: their sizes m, int64 [C].
        padded: whether any m < M.
    """

    which: Tensor
    rows: Tensor
    counts: Tensor
    padded: bool

    @property
    def inside(self) -> Tensor:
        """Which of ``rows`` are tokens of the cluster, bool [C, M]."""
        return torch.arange(self.rows.shape[1], device=self.rows.device) < self.counts[:, None]


def clusters_by_size(labels: Tensor, clusters: int, width: int) -> Iterator[Members]:
    """All clusters of more than one token, in pieces of similar size; waits for the device once.

    Args:
        labels: int64 [P, N] in [0, clusters).
        clusters: K.
        width: D, which decides how many clusters make one piece.
    """
    problems, size = labels.shape
    device = labels.device
    sizes = cluster_sizes(labels, clusters).flatten()
    order = labels.argsort(dim=1, stable=True) + torch.arange(problems, device=device)[:, None] * size
    order, starts = order.flatten(), sizes.cumsum(0) - sizes
    classes: dict[int, list[int]] = {}
    counts = sizes.tolist()
    fineness = 5 if device.type == "cpu" else 3  # rows of padding: at most a 16th of a cluster, or a quarter
    for index, count in enumerate(counts):
        if count > 1:
            step = 1 << max(0, count.bit_length() - fineness)
            classes.setdefault(-(-count // step) * step, []).append(index)
    for rows, members in sorted(classes.items(), reverse=True):  # the largest first: threads end together
        for part in chunks.chunks(len(members), rows * width * 8, device):
            which = torch.tensor(members[part], device=device)
            index = starts[which][:, None] + torch.arange(rows, device=device)
            padded = min(counts[member] for member in members[part]) < rows
            yield Members(which, order[index.clamp_(max=order.numel() - 1)], sizes[which], padded)


def radii(tokens: Tensor, members: Members) -> Tensor:
    """Nuclear norm of each cluster's centred tokens over sqrt(max(m - 1, D)), m its tokens.

    The paper divides by (m - 1) instead. Two tokens at distance 2 have radius sqrt(2 / D).

    Args:
        tokens: ``points[members.rows]``, [C, M, D]; differentiable.
        members: the clusters, of :func:`clusters_by_size`.

    Returns:
        Radii, float64 [C].
    """
    exact, counts = tokens.double(), members.counts[:, None, None]
    if members.padded:
        inside = members.inside[..., None]
        exact = torch.where(inside, exact, 0.0)
        exact = torch.where(inside, exact - exact.sum(1, keepdim=True) / counts, 0.0)
    else:
        exact = exact - exact.mean(1, keepdim=True)
    return singular_values(exact).sum(-1) / (members.counts - 1).clamp(min=tokens.shape[-1]).sqrt()


@torch.no_grad()
def cluster_radii(points: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Radius of each cluster: points [P, N, D] and labels [P, N] to float64 [P, K]; 0 below two tokens."""
    problems, _, width = points.shape
    result = torch.zeros(problems * clusters, dtype=torch.float64, device=points.device)
    rows = points.reshape(-1, width)

    def fill(members: Members) -> None:
        result[members.which] = radii(rows[members.rows], members)

    chunks.run(fill, clusters_by_size(labels, clusters, width), points.device)
    return result.view(problems, clusters)


def mean_radius(radii: Tensor, sizes: Tensor) -> Tensor:
    """Mean over clusters of two tokens or more, [..., K] to [...]; 1 where there are none (released code)."""
    counted = (sizes > 1).sum(-1)
    return torch.where(counted > 0, radii.sum(-1) / counted.clamp(min=1), RADIUS_WITHOUT_CLUSTERS)


def effective_dimension(tokens: Tensor) -> Tensor:
    """Share of the available directions the tokens use, in (0, 1]; not centred. [..., M, D] to float64 [...].

    exp(entropy of the normalised singular values) / min(M, D). Parallel tokens give 1 / min(M, D), and so do
    zeros.
    """
    values = singular_values(tokens)
    total = values.sum(-1, keepdim=True)
    shares = values / torch.where(total > 0, total, 1.0)
    # The clamp keeps the slope of p log p finite at p = 0 and changes no value.
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum(-1)
    return entropy.exp() / min(tokens.shape[-2:])


def _inverse(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, 1 / lengths, 0.0)
