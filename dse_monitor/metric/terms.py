"""The terms of DSE as functions of features: arXiv 2510.17299, and its released code where the two differ.

Shapes: B images, N tokens of an image, P problems (images or groups of images) of N points, D feature width,
K clusters, M rows of a matrix. The radii of clusters are in radius.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dse_monitor.metric import chunks
from dse_monitor.metric.spectra import singular_values


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
        directions[part] = torch.bmm(inverse(distances[part])[:, None], offsets)[:, 0]

    chunks.run(means, pieces, features.device)
    mean = image_means.mean(0)
    chunks.run(from_mean, pieces, features.device)
    distance = distances.mean(1, dtype=torch.float64)
    return Scale(
        distance.mean(), origin[0, 0] + mean, directions.mean(0) / positions, image_means - mean, distance
    )


def add_scale_gradient(out: Tensor, features: Tensor, scale: Scale, factor: Tensor) -> None:
    """Add ``factor`` times the slope of the scale in some images' tokens [b, N, D] to ``out``, in place."""
    factor = factor / (len(scale.image_means) * features.shape[1])
    offsets = features - scale.mean
    lengths = torch.linalg.vector_norm(offsets, dim=-1, keepdim=True)
    out.addcmul_(offsets, inverse(lengths) * factor).sub_(scale.direction * factor)


@torch.no_grad()
def offsets_to_nearest_other(points: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Points less the nearest centroid that is not their own cluster's; zero where there is no other.

    Their lengths are the distances of ``m_inter``; the paper squares them, the code does not. Orthonormal
    points that are their own centroids give sqrt(2).

    Args:
        points: [P, N, D].
        labels: own cluster of each point, int64 [P, N].
        centroids: [P, K, D].

    Returns:
        [P, N, D] in the dtype of ``points``.
    """
    if centroids.shape[1] < 2:
        return torch.zeros_like(points)
    centre = centroids.mean(1, keepdim=True)
    near = centroids - centre
    order = torch.baddbmm(near.square().sum(-1, keepdim=True), near, (points - centre).mT, alpha=-2)
    other = order.scatter_(1, labels[:, None], torch.inf).min(1).indices
    first = torch.arange(centroids.shape[0], device=points.device)[:, None] * centroids.shape[1]
    return points - centroids.flatten(0, 1)[other + first]


def effective_dimension(tokens: Tensor) -> Tensor:
    """Share of the available directions the tokens use, in (0, 1]; not centred. [..., M, D] to float64 [...].

    exp(entropy of the normalised singular values) / min(M, D). Parallel tokens give 1 / min(M, D), and so do
    zeros.
    """
    return dimension(singular_values(tokens), min(tokens.shape[-2:]))


def dimension(values: Tensor, available: int) -> Tensor:
    """Share of ``available`` directions that singular values [..., R] stand for: float64 [...]."""
    total = values.sum(-1, keepdim=True)
    shares = values / torch.where(total > 0, total, 1.0)
    # The clamp keeps the slope of p log p finite at p = 0 and changes no value.
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum(-1)
    return entropy.exp() / available


def inverse(lengths: Tensor) -> Tensor:
    """1 / lengths, and 0 for none."""
    return torch.where(lengths > 0, 1 / lengths, 0.0)
