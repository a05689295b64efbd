"""DSE as a term of a training loss (arXiv 2510.17299; released DSE_regularizer.py).

Shapes: B images, N tokens of an image, D feature width, G groups of consecutive images, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dse_monitor.metric import chunks, clustering, radius, terms
from dse_monitor.metric.measurement import (
    SHORTEST_TOKEN,
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
from dse_monitor.metric.precision import full_float32, with_float64

WEIGHT = 1e-3  # beta, unitless; authors' setting, arXiv 2510.17299


class RegularizerTerms(NamedTuple):
    """What the last call measured, for logging: detached scalars on the features' device, lambda = 1."""

    dse: Tensor
    m_inter: Tensor
    m_intra_image: Tensor
    m_intra_batch: Tensor
    m_dim: Tensor


class DSERegularizer(nn.Module):
    """The term to ADD to a loss so that training keeps dense structure: ``-weight * DSE``, lambda = 1.

    It differs from the metric as the released code does: m_dim is one effective rank of all B * N tokens,
    labels are assigned anew to the final centroids, and a group is ``global_clusters // local_clusters``
    images. Clusters are constants of the gradient; everything else is differentiated, the feature scale
    included.

    Gradients are finite for any finite features. Where a singular value is zero it gets none, where all
    tokens are equal separation gets none, and zero tokens get none when normalised. Features with NaN or
    infinity give a NaN term and NaN gradients, so that a gradient scaler skips the step. A second derivative
    is not defined.

    Args:
        weight: beta, unitless.
        normalize: divide every token by its length first.
        local_clusters: clusters within one image (at most N are used).
        global_clusters: clusters within one group of images.
        seed: fixes the chance in k-means of every call in turn; the global generator is not touched. The
            number of calls is part of ``state_dict()``, so a resumed training repeats exactly what the first
            would have done.

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
            features: patch tokens [B, N, D] of any floating dtype, computed in float32 (float64 if given
                float64).
            pseudo_labels: use these clusters instead of k-means; a permutation has no meaning here.

        Returns:
            Scalar in float32 (float64 if given float64).

        Raises:
            ValueError: features are not floating-point [B, N, D], or pseudo-labels do not fit them.
        """
        check_shape(features)
        if pseudo_labels is None:
            chance = draw_chance(
                features.shape,
                self.group,
                self.local_clusters,
                self.global_clusters,
                self._seed + self._calls,
            )
            self._calls += 1
        else:
            check_pseudo_labels(pseudo_labels, features.shape, self.group)
            chance = None
        own = with_float64(features)
        with torch.autocast(own.device.type, enabled=False), full_float32():
            values = _Structure.apply(own, self.normalize, self.group, chance, pseudo_labels)
            self.last = RegularizerTerms(*values.detach())  # pyright: ignore[reportAttributeAccessIssue]
            return (-self.weight * values[0]).to(features.device)  # pyright: ignore[reportIndexIssue]

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
    """(dse, m_inter, m_intra_image, m_intra_batch, m_dim), differentiable in the first.

    The gradient is worked out during the forward pass, piece by piece, into one tensor like the features: an
    autograd graph over all terms would hold several copies of them until the backward pass.
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
        tokens, lengths = as_tokens(features, normalize)
        scale = terms.feature_scale(tokens)
        if bool(scale.value.isfinite()):
            structure = _Slopes(tokens, scale, ctx.needs_input_grad[0])
            values = structure.values(group, chance, given)
            gradient = structure.gradient
            if gradient is not None and normalize:
                _through_normalisation(gradient, tokens, lengths)
        else:
            values = tokens.new_full((5,), torch.nan)
            gradient = tokens.new_full((1, 1, 1), torch.nan).expand_as(tokens)
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.dtype = features.dtype
        return values

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *incoming: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * incoming[0][0]).to(ctx.dtype), None, None, None, None


class _Slopes:
    """DSE of tokens [B, N, D] and, if ``differentiate``, its slope in them, ``gradient`` [B, N, D]."""

    def __init__(self, tokens: Tensor, scale: terms.Scale, differentiate: bool) -> None:
        self.tokens = tokens
        self.scale = scale
        apart = (
            scale.value > 0
        )  # where all tokens are equal nothing is wide, nothing is apart, and nothing pulls
        self.per_unit = torch.where(apart, 1 / scale.value, 0.0)
        self.differentiate = differentiate
        self.gradient: Tensor | None = None

    def values(self, group: int, chance: Chance | None, given: PseudoLabels | None) -> Tensor:
        """(dse, m_inter, m_intra_image, m_intra_batch, m_dim); fills the gradient."""
        images = self.tokens.shape[0]
        m_dim = self._dimension()
        found = [_clusters(points, which, chance, given) for which, points in blocks(self.tokens, group)]
        groups = sum(labels.shape[0] for labels, _ in found)
        sizes = [radius.cluster_sizes(labels, centroids.shape[1]) for labels, centroids in found]
        counted = torch.stack([(size > 1).sum() for size in sizes]).sum()
        inter, intra_batch = [], []
        for (which, points), (labels, centroids) in zip(blocks(self.tokens, group), found, strict=True):
            first = which.start * group * self.tokens.shape[1]
            inter.append(self._separation(points, labels, centroids, first, 1 / (groups * points.shape[1])))
            weight = (1 / counted.clamp(min=1)).double().expand(labels.shape[0], centroids.shape[1])
            intra_batch.append(self._radii(points, labels, weight, first))
        local = _local_labels(self.tokens, chance, given)
        sizes = radius.cluster_sizes(local, int(local.max()) + 1)
        several = (sizes > 1).sum(1, keepdim=True)
        weight = (1 / several.clamp(min=1)).double().expand_as(sizes) / images
        intra_image = self._radii(self.tokens, local, weight, 0)
        intra_image = intra_image + (several == 0).double().mean() * radius.RADIUS_WITHOUT_CLUSTERS
        intra_batch = torch.where(counted > 0, torch.stack(intra_batch).sum(), radius.RADIUS_WITHOUT_CLUSTERS)
        parts = torch.stack([torch.stack(inter).sum(), intra_image, intra_batch]) * self.per_unit
        separability = parts[0] - (parts[1] + parts[2]) / 2
        self._through_scale(separability)
        return torch.stack([separability + m_dim, *parts, m_dim]).to(self.tokens.dtype)

    def _dimension(self) -> Tensor:
        """Effective dimension of all tokens together."""
        rows = self.tokens.detach().flatten(0, 1)
        if not self.differentiate:
            return terms.effective_dimension(rows)
        with torch.enable_grad():
            value = terms.effective_dimension(rows.requires_grad_())
            self.gradient = torch.autograd.grad(value, rows)[0].view_as(self.tokens)
        return value.detach()

    def _separation(
        self, points: Tensor, labels: Tensor, centroids: Tensor, first: int, weight: float
    ) -> Tensor:
        """Weighted sum of the distances of groups [P, n * N, D], whose tokens start at ``first``."""
        sums = torch.zeros(points.shape[0], dtype=torch.float64, device=points.device)
        rows = self._gradient_rows(first, points)
        per_unit = (self.per_unit * weight).to(points.dtype)

        def separate(part: slice) -> None:
            offsets = terms.offsets_to_nearest_other(points[part], labels[part], centroids[part])
            distances = torch.linalg.vector_norm(offsets, dim=-1)
            sums[part] = distances.sum(1, dtype=torch.float64) * weight
            if rows is not None:
                rows.view_as(points)[part].addcmul_(offsets, terms.inverse(distances)[..., None] * per_unit)

        item = points[0].numel() * points.element_size()
        chunks.run(separate, chunks.chunks(points.shape[0], item, points.device), points.device)
        return sums.sum()

    def _radii(self, points: Tensor, labels: Tensor, weights: Tensor, first: int) -> Tensor:
        """Weighted sum of the radii [P, K] of problems [P, n, D] whose tokens start at ``first``."""
        result = torch.zeros(weights.numel(), dtype=torch.float64, device=points.device)
        weights = weights.flatten()
        own = points.flatten(0, 1)
        rows = self._gradient_rows(first, points)

        def widen(members: radius.Members) -> None:
            share = weights[members.which]
            width, slopes = radius.radii(
                own, members, -0.5 * self.per_unit * share if rows is not None else None
            )
            result[members.which] = width * share
            if rows is not None:
                rows.index_add_(0, members.rows.flatten(), slopes.flatten(0, 1))

        pieces = radius.clusters_by_size(labels, weights.numel() // points.shape[0], points.shape[2])
        chunks.run(widen, pieces, points.device)
        return result.sum()

    def _through_scale(self, separability: Tensor) -> None:
        """Add what the scale, which separability is divided by, passes on."""
        gradient = self.gradient
        if gradient is None:
            return
        factor = -(separability * self.per_unit).to(self.tokens.dtype)

        def convert(part: slice) -> None:
            terms.add_scale_gradient(gradient[part], self.tokens[part], self.scale, factor)

        _run_on_images(convert, self.tokens)

    def _gradient_rows(self, first: int, points: Tensor) -> Tensor | None:
        """The rows of the gradient that belong to some problems, [P * n, D], to be written in place."""
        if self.gradient is None:
            return None
        return self.gradient.view(-1, points.shape[2])[first : first + points.shape[0] * points.shape[1]]


def _through_normalisation(gradient: Tensor, tokens: Tensor, lengths: Tensor) -> None:
    """Turn the slope in normalised tokens into the slope in the tokens they came from, in place."""

    def convert(part: slice) -> None:
        along = torch.linalg.vecdot(gradient[part], tokens[part])[..., None]
        inverse = torch.where(lengths[part] > SHORTEST_TOKEN, 1 / lengths[part], 0.0)
        gradient[part].addcmul_(along, tokens[part], value=-1).mul_(inverse)

    _run_on_images(convert, tokens)


def _run_on_images(work: Callable[[slice], None], tokens: Tensor) -> None:
    item = tokens[0].numel() * tokens.element_size()
    chunks.run(work, chunks.chunks(tokens.shape[0], item, tokens.device), tokens.device)


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
        return given_clusters(given, groups, points)
    assert chance is not None
    centroids = clustering.kmeans(points, chance.groups[groups, : points.shape[1]]).centroids
    return clustering.Clusters(clustering.assign(points, centroids), centroids)
