"""DSE as a term of a training loss (arXiv 2510.17299, section on the regulariser; released DSE_regularizer.py).

Shapes: B images, N tokens of an image, D feature width, G groups of consecutive images, K clusters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dse_monitor.metric import clustering, terms
from dse_monitor.metric.chunks import chunks
from dse_monitor.metric.measurement import (
    Chance,
    PseudoLabels,
    as_tokens,
    blocks,
    check_counts,
    check_pseudo_labels,
    check_shape,
    draw_chance,
    given_clusters,
)

WEIGHT = 1e-3  # beta, unitless; authors' setting, arXiv 2510.17299
SHORTEST_TOKEN = 1e-12  # tokens no longer than this count as zero and get no gradient; eps of torch's normalize


class RegularizerTerms(NamedTuple):
    """What the last call measured, for logging: detached scalars on the device of the features, lambda = 1."""

    dse: Tensor
    m_inter: Tensor
    m_intra_image: Tensor
    m_intra_batch: Tensor
    m_dim: Tensor


class DSERegularizer(nn.Module):
    """The term to ADD to a loss so that training keeps dense structure: ``-weight * DSE``, lambda = 1.

    It differs from the metric as the released code does: m_dim is one effective rank of all B * N tokens, labels are
    assigned anew to the final centroids, and a group is ``global_clusters // local_clusters`` images. Clusters are
    constants of the gradient; everything else is differentiated, the feature scale included.

    Gradients are finite for any finite features. Where a singular value is zero it gets none, where all tokens are
    equal separation gets none, and zero tokens get none when normalised. Features with NaN or infinity give a NaN
    term and NaN gradients, so that a gradient scaler skips the step. A second derivative is not defined.

    Args:
        weight: beta, unitless.
        normalize: divide every token by its length first.
        local_clusters: clusters within one image (at most N are used).
        global_clusters: clusters within one group of images.
        seed: fixes the chance in k-means of every call in turn; the global generator is not touched. The number of
            calls is part of ``state_dict()``, so a resumed training repeats exactly what the first would have done.

    Attributes:
        last: :class:`RegularizerTerms` of the last call, None before.
    """

    def __init__(
        self,
        weight: float = WEIGHT,
        normalize: bool = True,
        local_clusters: int = 3,
        global_clusters: int = 24,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts(local_clusters=local_clusters, global_clusters=global_clusters)
        self.weight = weight
        self.normalize = normalize
        self.local_clusters = local_clusters
        self.global_clusters = global_clusters
        self.last: RegularizerTerms | None = None
        self._seed = seed
        self._calls = 0

    @property
    def group(self) -> int:
        """Consecutive images clustered together."""
        return max(1, self.global_clusters // self.local_clusters)

    def forward(self, features: Tensor, pseudo_labels: PseudoLabels | None = None) -> Tensor:
        """``-weight * DSE`` of the student's dense features.

        Args:
            features: patch tokens [B, N, D] of any floating dtype, computed in float32 (float64 if given float64).
            pseudo_labels: use these clusters instead of k-means; a permutation has no meaning here.

        Returns:
            Scalar in float32 (float64 if given float64).

        Raises:
            ValueError: features are not floating-point [B, N, D], or pseudo-labels do not fit them.
        """
        check_shape(features)
        if pseudo_labels is None:
            chance = draw_chance(
                features.shape, self.group, self.local_clusters, self.global_clusters, self._seed + self._calls
            )
            self._calls += 1
        else:
            check_pseudo_labels(pseudo_labels, features.shape, self.group)
            chance = None
        with torch.autocast(features.device.type, enabled=False):
            values = _Structure.apply(features, self.normalize, self.group, chance, pseudo_labels)
            self.last = RegularizerTerms(*values.detach())  # pyright: ignore[reportAttributeAccessIssue]
            return -self.weight * values[0]  # pyright: ignore[reportIndexIssue]

    def get_extra_state(self) -> Tensor:
        """Seed and calls so far, int64 [2]."""
        return torch.tensor([self._seed, self._calls])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on as the regulariser did that ``state`` was saved from."""
        self._seed, self._calls = map(int, state)

    def extra_repr(self) -> str:
        """Settings, for ``repr``."""
        return (
            f"weight={self.weight}, normalize={self.normalize}, local_clusters={self.local_clusters}, "
            f"global_clusters={self.global_clusters}"
        )


class _Structure(torch.autograd.Function):
    """(dse, its four components), differentiable in the first.

    The gradient is worked out during the forward pass, group by group, into one tensor like the features: an autograd
    graph over all terms would keep several copies of them until the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        normalize: bool,
        group: int,
        chance: Chance | None,
        given: PseudoLabels | None,
    ) -> Tensor:
        finite = features.detach().isfinite().all()
        features = torch.where(finite, features, 0)  # decompositions refuse NaN; the results become NaN below
        lengths = torch.linalg.vector_norm(as_tokens(features, False), dim=-1, keepdim=True)
        tokens = as_tokens(features, normalize)
        values, gradient = _values_and_gradient(tokens, group, chance, given, ctx.needs_input_grad[0])
        poison = torch.where(finite, 1.0, torch.nan).to(values.dtype)
        if gradient is not None:
            if normalize:
                for part in chunks(tokens.shape[0], tokens[0].numel() * tokens.element_size(), tokens.device):
                    along = (gradient[part] * tokens[part]).sum(-1, keepdim=True)
                    inverse = torch.where(lengths[part] > SHORTEST_TOKEN, 1 / lengths[part], 0.0)
                    gradient[part] = (gradient[part] - along * tokens[part]) * inverse
            ctx.save_for_backward(gradient, poison)
            ctx.dtype = features.dtype
        return values * poison

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient, poison = ctx.saved_tensors
        return (gradient * (incoming[0][0] * poison)).to(ctx.dtype), None, None, None, None


def _values_and_gradient(
    tokens: Tensor, group: int, chance: Chance | None, given: PseudoLabels | None, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """(dse, m_inter, m_intra_image, m_intra_batch, m_dim) and the slope of dse in the tokens [B, N, D]."""
    images, positions, width = tokens.shape
    scale = terms.feature_scale(tokens)
    unit = torch.where(scale.value > 0, scale.value, 1.0)
    m_dim, gradient = _dimension(tokens, differentiate)
    local = _local_labels(tokens, chance, given)
    image_clusters = int(local.max()) + 1
    found = [_clusters(points, which, chance, given) for which, points in blocks(tokens, group)]
    groups = sum(labels.shape[0] for labels, _ in found)
    counted = sum((terms.cluster_sizes(labels, c.shape[1]) > 1).sum() for labels, c in found)
    inter, intra_image, intra_batch = (torch.zeros((), dtype=torch.float64, device=tokens.device) for _ in range(3))
    for (which, points), (labels, centroids) in zip(blocks(tokens, group), found, strict=True):
        members = points.shape[1] // positions
        for part in chunks(points.shape[0], points[0].numel() * 8, tokens.device):
            first = (which.start + part.start) * group
            some = slice(first, first + (part.stop - part.start) * members)
            with torch.set_grad_enabled(differentiate):
                z = tokens[some].detach().requires_grad_(differentiate)
                own = z.view(-1, members * positions, width)
                separation = terms.nearest_other_distance(own, labels[part], centroids[part]).mean(1).sum() / groups
                radii, sizes = terms.cluster_radii(z, local[some], image_clusters)
                of_images = terms.mean_radius(radii, sizes).sum() / images
                radii, _ = terms.cluster_radii(own, labels[part], centroids.shape[1])
                of_groups = torch.where(counted > 0, radii.sum() / counted.clamp(min=1), 0.0)
                value = separation.double() - (of_images + of_groups) / 2
            if gradient is not None:
                gradient[some] += torch.autograd.grad(value, z)[0] * (scale.value > 0) / unit.to(tokens.dtype)
            inter += separation.detach()
            intra_image += of_images.detach()
            intra_batch += of_groups.detach()
    intra_batch = torch.where(counted > 0, intra_batch, terms.RADIUS_WITHOUT_CLUSTERS)
    parts = torch.stack([inter, intra_image, intra_batch]) / unit * (scale.value > 0)
    separability = parts[0] - (parts[1] + parts[2]) / 2
    if gradient is not None:
        slope = (separability / unit).to(tokens.dtype)
        for part in chunks(images, tokens[0].numel() * tokens.element_size(), tokens.device):
            gradient[part] -= slope * terms.feature_scale_gradient(tokens[part], scale, images)
    values = torch.stack([separability + m_dim, *parts, m_dim])
    return values.to(tokens.dtype), gradient


def _dimension(tokens: Tensor, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """Effective dimension of all tokens together, and its slope in them."""
    with torch.set_grad_enabled(differentiate):
        rows = tokens.detach().flatten(0, 1).requires_grad_(differentiate)
        value = terms.effective_dimension(rows)
    slope = torch.autograd.grad(value, rows)[0].view_as(tokens) if differentiate else None
    return value.detach(), slope


def _local_labels(tokens: Tensor, chance: Chance | None, given: PseudoLabels | None) -> Tensor:
    if given is not None:
        return given.local_labels.to(tokens.device).long()
    assert chance is not None
    return clustering.assign(tokens, clustering.kmeans(tokens, chance.local).centroids)


def _clusters(
    points: Tensor, groups: slice, chance: Chance | None, given: PseudoLabels | None
) -> clustering.Clusters:
    """Labels of the final centroids, and the centroids, of some groups [P, n * N, D]."""
    if given is not None:
        return given_clusters(given, groups, points.device)
    assert chance is not None
    centroids = clustering.kmeans(points, chance.groups[groups, : points.shape[1]]).centroids
    return clustering.Clusters(clustering.assign(points, centroids), centroids)
