"""The terms of DSE as pure functions of features, differentiable wherever a value exists.

Shapes: B images, N tokens of an image, P problems (images or groups of images) of N points, D feature width, K clusters,
C matrices of M rows, R = min(M, D). Source of every term: arXiv 2510.17299, where text and released code differ the code.

Spectra come from the smaller Gram matrix in float64: one singular value is then right to about 2e-8 of the largest,
closer than a float32 decomposition of the features themselves and several times faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dse_monitor.metric.chunks import chunks

RADIUS_WITHOUT_CLUSTERS = (
    1.0  # radius of a problem in which no cluster has two tokens; released code, estimator.py
)


class Scale(NamedTuple):
    """The unit of radii and separation, and what it takes to differentiate it.

    Attributes:
        value: mean distance of a token to the mean token, >= 0, float64 []; exactly zero where all tokens are equal.
        mean: the mean token [D].
        direction: mean unit vector from the mean token to a token [D]: minus the slope of ``value`` in ``mean``.
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
    """Scale of features [B, N, D]; see :class:`Scale`, and :func:`feature_scale_gradient`."""
    images, positions, width = features.shape
    item = positions * width * features.element_size()
    origin = features[:1, :1]  # taken off first: exact for close numbers, so that equal tokens differ by exactly zero
    image_means = features.new_empty(images, width)
    for part in chunks(images, item, features.device):
        image_means[part] = (features[part] - origin).mean(1)
    mean = image_means.mean(0)
    distances = features.new_empty(images, positions)
    direction = torch.zeros_like(mean)
    for part in chunks(images, item, features.device):
        offsets = (features[part] - origin).sub_(mean)
        distances[part] = torch.linalg.vector_norm(offsets, dim=-1)
        direction += _inverse(distances[part]).flatten() @ offsets.flatten(0, 1)
    distance = distances.mean(1, dtype=torch.float64)
    return Scale(
        distance.mean(), origin[0, 0] + mean, direction / (images * positions), image_means - mean, distance
    )


def feature_scale_gradient(features: Tensor, scale: Scale, images: int) -> Tensor:
    """Slope of the scale of B = ``images`` images in some of their tokens: [b, N, D] to [b, N, D]."""
    offsets = features - scale.mean
    unit = offsets * _inverse(torch.linalg.vector_norm(offsets, dim=-1, keepdim=True))
    return (unit - scale.direction) / (images * features.shape[1])


def _inverse(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, 1 / lengths, 0.0)


def nearest_other_distance(points: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Distance of each point to the nearest centroid but its own cluster's, not squared (the paper squares it).

    Orthonormal points that are their own centroids give sqrt(2). With a single cluster there is no other: 0.

    Args:
        points: [P, N, D].
        labels: own cluster of each point, int64 [P, N].
        centroids: [P, K, D], constants of the gradient.

    Returns:
        Distances [P, N] in the dtype of ``points``.
    """
    if centroids.shape[1] < 2:
        return points.new_zeros(labels.shape)
    with torch.no_grad():
        centre = centroids.mean(1, keepdim=True)
        near = centroids - centre
        order = torch.baddbmm(near.square().sum(-1)[:, None], points - centre, near.mT, alpha=-2)
        other = order.scatter_(2, labels[..., None], torch.inf).argmin(-1)
    nearest = centroids.gather(1, other[..., None].expand(-1, -1, points.shape[-1]))
    return torch.linalg.vector_norm(points - nearest, dim=-1)


def cluster_radii(points: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Radius of each cluster: nuclear norm of its centred tokens over sqrt(max(m - 1, D)), m its tokens.

    The paper divides by (m - 1) instead. Two tokens at distance 2 have radius sqrt(2) / sqrt(D).

    Args:
        points: [P, N, D].
        labels: int64 [P, N] in [0, clusters).
        clusters: K.

    Returns:
        Radii float64 [P, K], zero for clusters of fewer than two tokens, and sizes m, int64 [P, K].
    """
    problems, size, width = points.shape
    sizes = cluster_sizes(labels, clusters)
    order = labels.argsort(dim=1, stable=True)
    order = (order + torch.arange(problems, device=points.device)[:, None] * size).flatten()
    starts = (sizes.flatten().cumsum(0) - sizes.flatten()).tolist()
    rows = points.reshape(-1, width)
    radii: list[Tensor] = []
    places: list[int] = []
    for padded, members in _size_classes(sizes.flatten().tolist(), width, points.device):
        counts = sizes.flatten()[members]
        first = torch.tensor([starts[member] for member in members], device=points.device)
        step = torch.arange(padded, device=points.device)
        inside = (step < counts[:, None])[..., None]
        index = order[(first[:, None] + step).clamp_(max=order.numel() - 1)]
        tokens = rows[index.flatten()].view(len(members), padded, width).double() * inside
        tokens = (tokens - tokens.sum(1, keepdim=True) / counts[:, None, None]) * inside
        radii.append(singular_values(tokens).sum(-1) / (counts - 1).clamp(min=width).sqrt())
        places.extend(members)
    result = torch.zeros(problems * clusters, dtype=torch.float64, device=points.device)
    if radii:
        result = result.index_put((torch.tensor(places, device=points.device),), torch.cat(radii))
    return result.view(problems, clusters), sizes


def cluster_sizes(labels: Tensor, clusters: int) -> Tensor:
    """Tokens of each cluster: labels int64 [P, N] to int64 [P, K]."""
    sizes = torch.zeros(labels.shape[0], clusters, dtype=torch.int64, device=labels.device)
    return sizes.scatter_add_(1, labels, torch.ones_like(labels))


def mean_radius(radii: Tensor, sizes: Tensor) -> Tensor:
    """Mean over the clusters with more than one token, [..., K] to [...]; 1 where there are none (released code)."""
    counted = (sizes > 1).sum(-1)
    return torch.where(counted > 0, radii.sum(-1) / counted.clamp(min=1), RADIUS_WITHOUT_CLUSTERS)


def effective_dimension(tokens: Tensor) -> Tensor:
    """Share of the available directions the tokens use, in (0, 1]; not centred. [..., M, D] to float64 [...].

    exp(entropy of the normalised singular values) / min(M, D). Parallel tokens give 1 / min(M, D), and so do zeros.
    """
    values = singular_values(tokens)
    total = values.sum(-1, keepdim=True)
    shares = values / torch.where(total > 0, total, 1.0)
    # The clamp keeps the slope of p log p finite at p = 0 and changes no value.
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum(-1)
    return entropy.exp() / min(tokens.shape[-2:])


def effective_dimension_parts(tokens: Tensor) -> Tensor:
    """Slope of :func:`effective_dimension` in the weight of each token, [..., M, D] to float64 [..., M].

    A token of weight w counts as sqrt(w) times itself, so the slope at w = 1 is half of z dot d/dz. The slopes of one
    set add up to zero, for the effective dimension does not depend on the scale.
    """
    with torch.inference_mode(False), torch.enable_grad():
        tokens = tokens.double().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(effective_dimension(tokens).sum(), tokens)
    return (tokens.detach() * gradient).sum(-1) / 2


def singular_values(matrices: Tensor) -> Tensor:
    """Singular values, ascending, with a gradient that stays finite where they repeat or vanish.

    Args:
        matrices: [..., M, D].

    Returns:
        float64 [..., R]. A value below the rounding of the Gram matrix passes no gradient back: at zero it has none.
    """
    return _SingularValues.apply(matrices)  # pyright: ignore[reportReturnType]


class _SingularValues(torch.autograd.Function):
    """d sigma_j = u_j v_j^T: U diag(g) V^T for incoming g, with no differences of singular values to divide by."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        gram = _smaller_gram(matrices)
        if not ctx.needs_input_grad[0]:
            return torch.linalg.eigvalsh(gram).clamp_(min=0).sqrt_()
        squares, vectors = torch.linalg.eigh(gram)
        values = squares.clamp_(min=0).sqrt_()
        ctx.save_for_backward(matrices, values, vectors)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        matrices, values, vectors = ctx.saved_tensors
        smallest = values[..., -1:] * math.sqrt(torch.finfo(values.dtype).eps * values.shape[-1])
        weights = torch.where(values > smallest, gradient / values, 0.0)
        middle = (vectors * weights[..., None, :]) @ vectors.mT
        result = torch.empty_like(matrices)
        if matrices.shape[-2] > matrices.shape[-1]:
            for part in _row_chunks(matrices):
                result[..., part, :] = (matrices[..., part, :].double() @ middle).to(matrices.dtype)
        else:
            result.copy_(middle @ matrices.double())
        return result


def _smaller_gram(matrices: Tensor) -> Tensor:
    """Products of columns [..., D, D] or of rows [..., M, M], whichever are fewer, in float64."""
    if matrices.shape[-2] <= matrices.shape[-1]:
        exact = matrices.double()
        return exact @ exact.mT
    gram = torch.zeros(())
    for part in _row_chunks(matrices):
        exact = matrices[..., part, :].double()
        gram = exact.mT @ exact if part.start == 0 else gram + exact.mT @ exact
    return gram


def _row_chunks(matrices: Tensor) -> Iterator[slice]:
    """Rows [..., M, :] to convert to float64 at a time."""
    rows = matrices.shape[-2]
    return chunks(rows, matrices.numel() // rows * 8, matrices.device)


def _size_classes(sizes: list[int], width: int, device: torch.device) -> Iterator[tuple[int, list[int]]]:
    """Clusters of nearly one size together, so that few are padded: (rows with padding, indices of clusters)."""
    classes: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        if size > 1:
            step = 1 << max(0, size.bit_length() - 4)  # at most an eighth of padding
            classes.setdefault(-(-size // step) * step, []).append(index)
    for padded in sorted(classes):
        members = classes[padded]
        for part in chunks(len(members), padded * width * 8, device):
            yield padded, members[part]
