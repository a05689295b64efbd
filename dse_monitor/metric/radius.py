"""How wide clusters are: nuclear norms of their centred tokens, many clusters at once, and their slopes.

Shapes: P problems (images or groups of images) of N points, D feature width, K clusters, C clusters of nearly
one size worked on together, M rows for each of them, m <= M its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dse_monitor.metric import chunks
from dse_monitor.metric.spectra import inverse_root, lower_products, root_values

RADIUS_WITHOUT_CLUSTERS = 1.0  # radius where no cluster has two tokens; released code, estimator.py
FLOAT32_SPREAD = 1e-4  # smallest eigenvalue over the largest: float32 is right to 1e-5 of a radius; ours
FLOAT32_LEAST = 1e-20  # largest eigenvalue from which none above that spread nears float32's smallest; ours


class Members(NamedTuple):
    """Clusters of nearly one size, to be decomposed together.

    Attributes:
        which: their indices among all P * K clusters, int64 [C].
        rows: indices of their tokens among all P * N, int64 [C, M]; past a cluster's size its first again.
        counts: their sizes m, int64 [C].
    """

    which: Tensor
    rows: Tensor
    counts: Tensor

    @property
    def inside(self) -> Tensor:
        """Which of ``rows`` are tokens of the cluster and not its first again, bool [C, M]."""
        return torch.arange(self.rows.shape[1], device=self.rows.device) < self.counts[:, None]


def cluster_sizes(labels: Tensor, clusters: int) -> Tensor:
    """Tokens of each cluster: labels int64 [P, N] to int64 [P, K]."""
    sizes = torch.zeros(labels.shape[0], clusters, dtype=torch.int64, device=labels.device)
    return sizes.scatter_add_(1, labels, torch.ones_like(labels))


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
    fineness = 5 if device.type == "cpu" else 3  # rows of padding: at most a 16th of a cluster, or a quarter
    for index, count in enumerate(sizes.tolist()):
        if count > 1:
            step = 1 << max(0, count.bit_length() - fineness)
            classes.setdefault(-(-count // step) * step, []).append(index)
    for rows, members in sorted(classes.items(), reverse=True):  # the largest first: threads end together
        every = torch.arange(rows, device=device)
        for part in chunks.chunks(len(members), rows * width * 8, device):
            which = torch.tensor(members[part], device=device)
            counts = sizes[which]
            inside = torch.where(every < counts[:, None], every, 0)
            yield Members(which, order[starts[which][:, None] + inside], counts)


@torch.no_grad()
def radii(tokens: Tensor, members: Members, gains: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Nuclear norm of each cluster's centred tokens over sqrt(max(m - 1, D)), and its slope in them.

    The paper divides by (m - 1) instead. Two tokens at distance 2 have radius sqrt(2 / D). The slope of a
    nuclear norm is the orthogonal factor of the matrix, (X X^T)^(-1/2) X; directions without extent get none.

    Args:
        tokens: of all problems, [P * N, D].
        members: the clusters, of :func:`clusters_by_size`.
        gains: factors on the slopes, float64 [C]; None works out no slopes.

    Returns:
        Radii, float64 [C]; slopes in ``tokens[members.rows]``, [C, M, D] in the tokens' own type, zero in
        rows that are not a cluster's own (nothing where ``gains`` is None).
    """
    offsets = tokens.index_select(0, members.rows.flatten()).view(*members.rows.shape, -1)
    # Off the cluster's first token: exact for close numbers, and zero where that token stands in for others.
    offsets.sub_(offsets[:, :1].clone())
    units = (members.counts - 1).clamp(min=tokens.shape[-1]).sqrt().reciprocal()
    if gains is None:
        return _nuclear_norms(offsets, members) * units, offsets.new_empty(0)
    values, inverse = inverse_root(_centred_gram(offsets.double(), members), gains * units)
    inverse = inverse.to(offsets.dtype)
    if _narrow(offsets):
        slopes = inverse @ offsets  # it knows nothing of the mean: it is as if the offsets were centred
    else:
        mean = offsets.sum(1, keepdim=True) / members.counts[:, None, None]
        slopes = ((offsets - mean) @ inverse).mul_(members.inside[..., None])
    return values.sum(-1) * units, slopes


@torch.no_grad()
def cluster_radii(points: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Radius of each cluster: points [P, N, D] and labels [P, N] to float64 [P, K]; 0 below two tokens."""
    problems, _, width = points.shape
    result = torch.zeros(problems * clusters, dtype=torch.float64, device=points.device)
    rows = points.reshape(-1, width)

    def fill(members: Members) -> None:
        result[members.which] = radii(rows, members)[0]

    chunks.run(fill, clusters_by_size(labels, clusters, width), points.device)
    return result.view(problems, clusters)


def mean_radius(radii: Tensor, sizes: Tensor) -> Tensor:
    """Mean over clusters of two tokens or more, [..., K] to [...]; 1 where there are none (released code)."""
    counted = (sizes > 1).sum(-1)
    return torch.where(counted > 0, radii.sum(-1) / counted.clamp(min=1), RADIUS_WITHOUT_CLUSTERS)


def _nuclear_norms(offsets: Tensor, members: Members) -> Tensor:
    """Sums of the singular values of centred clusters, offsets [C, M, D] to float64 [C].

    On a CPU float32 takes three quarters of the time and is enough for most clusters. The others, whose
    tokens lie in a line or coincide, are done again in float64. An accelerator would have to be waited for
    to learn which those are.
    """
    float32 = offsets.dtype == torch.float32 and offsets.device.type == "cpu" and _narrow(offsets)
    if not float32 or not (gram := _centred_gram(offsets, members)).isfinite().all():
        return _exact_nuclear_norms(offsets, members)
    squares = torch.linalg.eigvalsh(gram)
    # In ascending order, after the zeros of rows past a cluster's size and of the mean taken off.
    first = squares.shape[1] - members.counts[:, None] + 1
    own = torch.arange(squares.shape[1]) >= first
    norms = (squares * own).clamp_(min=0).sqrt_().sum(-1, dtype=torch.float64)
    smallest, largest = squares.gather(1, first)[:, 0], squares[:, -1]
    enough = (smallest >= largest * FLOAT32_SPREAD) & (largest >= FLOAT32_LEAST)
    again = (~enough).nonzero()[:, 0]
    if len(again):
        norms[again] = _exact_nuclear_norms(offsets[again], Members(*(part[again] for part in members)))
    return norms


def _exact_nuclear_norms(offsets: Tensor, members: Members) -> Tensor:
    return root_values(_centred_gram(offsets.double(), members)).sum(-1)


def _narrow(offsets: Tensor) -> bool:
    """Whether products of rows are the smaller ones."""
    return offsets.shape[1] <= offsets.shape[2]


def _centred_gram(offsets: Tensor, members: Members) -> Tensor:
    """Products of rows or columns, the smaller, right up to the diagonal."""
    return (_centred_rows if _narrow(offsets) else _centred_columns)(offsets, members)


def _centred_rows(offsets: Tensor, members: Members) -> Tensor:
    """Products of rows [C, M, M] as if the mean of the cluster's own had been taken off; lower half.

    Centring M x M products costs far less than centring M x D tokens.
    """
    gram = lower_products(offsets)
    inside, counts = members.inside.to(gram.dtype), members.counts[:, None]
    # The sums of the products' rows, from the offsets: only the lower half of the products is there. A row
    # times a matrix, for a matrix times a column takes MKL ten times as long in batches.
    sums = (offsets.sum(1, keepdim=True) @ offsets.mT)[:, 0] / counts
    sums -= inside * (sums.sum(1, keepdim=True) / (2 * counts))
    left, right = torch.stack([inside, sums], 2), torch.stack([sums, inside], 1)
    return gram.baddbmm_(left, right, alpha=-1)


def _centred_columns(offsets: Tensor, members: Members) -> Tensor:
    """Products of columns [C, D, D] as if the mean of the cluster's own rows had been taken off."""
    sums = offsets.sum(1)
    return lower_products(offsets.mT).baddbmm_(
        sums[..., None] / members.counts[:, None, None], sums[:, None], alpha=-1
    )
