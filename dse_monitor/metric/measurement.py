"""Dense features of one batch of images -> the components of DSE with their standard errors.

Shapes: B images, N tokens of an image, D feature width, G groups of consecutive images, K clusters.
What the errors mean, and what they leave out, is in docs/metric.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dse_monitor.metric import chunks, clustering, radius, spectra, terms, uncertainty
from dse_monitor.metric.components import Components, NonFiniteFeatures
from dse_monitor.metric.precision import full_float32, with_float64

JACKKNIFE_POSITIONS = 4  # positions at which images are left out, for the error of m_dim; ours
SHORTEST_TOKEN = 1e-12  # lengths below are taken for it when normalising; eps of torch's normalize


@dataclass(frozen=True)
class PseudoLabels:
    """Clusters and permutation to use in place of k-means and chance, to compare implementations.

    Attributes:
        local_labels: cluster of each token among its own image's, integers [B, N].
        global_labels: for each group, cluster of each of its tokens, integers [n * N] with n its images.
        global_centroids: for each group, float [K, D]; of normalised tokens if tokens are normalised.
        position_permutation: token of each image that takes each position, integers [B, N]; None for chance.
    """

    local_labels: Tensor
    global_labels: Sequence[Tensor]
    global_centroids: Sequence[Tensor]
    position_permutation: Tensor | None = None


@torch.no_grad()
def measure(
    features: Tensor,
    *,
    group: int = 8,
    local_clusters: int = 3,
    global_clusters: int = 24,
    normalize: bool = True,
    seed: int = 0,
    pseudo_labels: PseudoLabels | None = None,
) -> Components:
    """Components of DSE of one batch of dense features, as the code released with arXiv 2510.17299 does.

    The batch is part of the definition, for m_dim depends on B; several batches are combined by
    :func:`average`.

    Args:
        features: last-layer patch tokens [B, N, D], any floating dtype and device; half precision becomes
            float32.
        group: consecutive images clustered together; the last group may hold fewer.
        local_clusters: clusters within one image (at most N are used).
        global_clusters: clusters within one group (at most its tokens are used).
        normalize: divide every token by its length first; zero tokens stay zero.
        seed: fixes k-means and the permutation of positions. Drawn on the CPU, so the same on every device;
            the global generator is not touched.
        pseudo_labels: use these clusters and this permutation instead.

    Returns:
        The components in units of the feature scale, with standard errors over images. Where all tokens are
        equal the scale is zero, and so are radii and separation.

    Raises:
        NonFiniteFeatures: NaN or infinity among the features.
        ValueError: an argument has the wrong shape, dtype or range.
    """
    check_shape(features)
    check_counts(group=group, local_clusters=local_clusters, global_clusters=global_clusters)
    if pseudo_labels is not None:
        check_pseudo_labels(pseudo_labels, features.shape, group)
    features = with_float64(features)
    exact = torch.autocast(features.device.type, enabled=False)
    with torch.inference_mode(False), exact, full_float32():
        tokens, _ = as_tokens(features.detach(), normalize)
        scale = terms.feature_scale(tokens)
        if not bool(scale.value.isfinite()):
            raise _not_finite(features)
        chance = draw_chance(features.shape, group, local_clusters, global_clusters, seed)
        # The mean token deviates with the images too, and moves the distances to it.
        moved = scale.image_means.double() @ scale.direction.double()
        return _components(
            scale.value.cpu(),
            uncertainty.of_mean(scale.image_distances - moved).cpu(),
            _image_radii(tokens, chance, pseudo_labels).cpu(),
            _groups(tokens, group, chance, pseudo_labels),
            *_dimensions(tokens, _permutation(chance, pseudo_labels).to(tokens.device), group),
            group,
            features.shape[2],
        )


def average(batches: Sequence[Components]) -> Components:
    """Plain mean over batches of images, as released, with the errors of independent batches.

    Args:
        batches: components of disjoint sets of images, at least one; errors that are nan stay nan.

    Raises:
        ValueError: no batches, or batches that differ in tokens or width.
    """
    if not batches:
        raise ValueError("average() needs the components of at least one batch, got none")
    shapes = {(batch.tokens, batch.width) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(
            f"average() got batches of different (tokens, width): {sorted(shapes)}; "
            "values of different image sizes or layers are not comparable, measure them apart"
        )
    count = len(batches)

    def mean(name: str) -> float:
        return math.fsum(getattr(batch, name) for batch in batches) / count

    def error(name: str) -> float:
        return math.sqrt(math.fsum(getattr(batch, name) ** 2 for batch in batches)) / count

    return Components(
        m_inter=mean("m_inter"),
        m_intra_image=mean("m_intra_image"),
        m_intra_batch=mean("m_intra_batch"),
        m_dim=mean("m_dim"),
        m_inter_se=error("m_inter_se"),
        m_intra_image_se=error("m_intra_image_se"),
        m_intra_batch_se=error("m_intra_batch_se"),
        m_dim_se=error("m_dim_se"),
        separability_se=error("separability_se"),
        separability_dim_cov=mean("separability_dim_cov") / count,
        images=sum(batch.images for batch in batches),
        tokens=batches[0].tokens,
        width=batches[0].width,
    )


def check_shape(features: Tensor) -> None:
    """Raise ValueError unless features are floating-point [B, N, D] with B, N, D >= 1."""
    if features.ndim != 3 or 0 in features.shape or not features.is_floating_point():
        raise ValueError(
            f"got {features.dtype} of shape {tuple(features.shape)}; expected floating point [B, N, D]: "
            "images, tokens per image, width, at least one of each (drop class tokens, flatten feature maps)"
        )


def check_counts(**counts: int) -> None:
    """Raise ValueError for a count below one."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; expected at least 1")


def check_pseudo_labels(given: PseudoLabels, shape: Sequence[int], group: int) -> None:
    """Raise ValueError where pseudo-labels do not fit features of ``shape`` [B, N, D] in groups."""
    images, positions, width = shape
    members = [min(group, images - start) for start in range(0, images, group)]
    problems = []
    if tuple(given.local_labels.shape) != (images, positions):
        problems.append(f"local_labels {tuple(given.local_labels.shape)}, expected {(images, positions)}")
    permutation = given.position_permutation
    if permutation is not None and tuple(permutation.shape) != (images, positions):
        problems.append(f"position_permutation {tuple(permutation.shape)}, expected {(images, positions)}")
    if not len(given.global_labels) == len(given.global_centroids) == len(members):
        problems.append(
            f"{len(given.global_labels)} global_labels and {len(given.global_centroids)} global_centroids, "
            f"expected one of each for {len(members)} groups"
        )
    else:
        for index, (labels, centroids, count) in enumerate(
            zip(given.global_labels, given.global_centroids, members, strict=True)
        ):
            if (
                tuple(labels.shape) != (count * positions,)
                or centroids.ndim != 2
                or centroids.shape[1] != width
            ):
                problems.append(
                    f"group {index}: labels {tuple(labels.shape)} and centroids {tuple(centroids.shape)}, "
                    f"expected {(count * positions,)} and [K, {width}]"
                )
            elif int(labels.max()) >= centroids.shape[0]:
                problems.append(
                    f"group {index}: label {int(labels.max())} among {centroids.shape[0]} centroids"
                )
    if problems:
        raise ValueError("pseudo_labels do not fit the features: " + "; ".join(problems))


def as_tokens(features: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """Tokens to compute with, and the lengths they had.

    Args:
        features: [B, N, D].
        normalize: divide every token by its length; tokens shorter than SHORTEST_TOKEN become (nearly) zero.

    Returns:
        Tokens [B, N, D] in float32, or float64 if given that, and their lengths before, [B, N, 1]; not
        finite where a token is not, or its square is too large for the type.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    lengths = features.new_empty(*features.shape[:2], 1, dtype=dtype)
    tokens = features.new_empty(features.shape, dtype=dtype) if normalize else features.to(dtype).contiguous()

    def convert(part: slice) -> None:
        own = features[part].to(dtype).contiguous()  # sums round by their order in memory
        lengths[part] = torch.linalg.vector_norm(own, dim=-1, keepdim=True)
        if normalize:
            # An infinite length must not turn finite numbers into a zero token unseen.
            known = lengths[part].isfinite()
            divisors = torch.where(known, lengths[part].clamp(min=SHORTEST_TOKEN), torch.nan)
            torch.div(own, divisors, out=tokens[part])

    item = features[0].numel() * lengths.element_size()
    chunks.run(convert, chunks.chunks(features.shape[0], item, features.device), features.device)
    return tokens, lengths


def _not_finite(features: Tensor) -> NonFiniteFeatures:
    nan, infinite = features.isnan().sum((1, 2)), features.isinf().sum((1, 2))
    images = (nan + infinite).nonzero()[:, 0].tolist()
    if not images:
        return NonFiniteFeatures(
            f"features reach {float(features.abs().max()):.3g}: finite, but their squares overflow float32; "
            "the network diverged"
        )
    named = ", ".join(map(str, images[:10])) + (", ..." if len(images) > 10 else "")
    return NonFiniteFeatures(
        f"{int(nan.sum())} NaN and {int(infinite.sum())} infinite of {features.numel()} numbers, "
        f"in {len(images)} of {features.shape[0]} images (index {named}): the network diverged"
    )


class Groups(NamedTuple):
    """For each of G groups: mean distance to the nearest other centroid, sum and count of radii."""

    separation: Tensor
    radius_sum: Tensor
    radius_count: Tensor


class Chance(NamedTuple):
    """Everything random: uniform draws for both k-means and the token that takes each position, [B, N]."""

    local: Tensor
    groups: Tensor
    permutation: Tensor


def draw_chance(
    shape: Sequence[int], group: int, local_clusters: int, global_clusters: int, seed: int
) -> Chance:
    """Three independent streams of one seed, so changing one cluster number leaves the other draws alone."""
    images, positions, _ = shape
    seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
    local, groups, permutation = (torch.Generator().manual_seed(part) for part in seeds)
    return Chance(
        clustering.seeding_draws(images, min(local_clusters, positions), local),
        clustering.seeding_draws(-(-images // group), global_clusters, groups),
        torch.rand(images, positions, dtype=torch.float64, generator=permutation).argsort(1),
    )


def blocks(tokens: Tensor, group: int) -> Iterator[tuple[slice, Tensor]]:
    """Groups of equal size together: the full ones, then a smaller last one; (groups, [P, n * N, D])."""
    images, _, width = tokens.shape
    full = images // group
    if full:
        yield slice(0, full), tokens[: full * group].reshape(full, -1, width)
    if images % group:
        yield slice(full, full + 1), tokens[full * group :].reshape(1, -1, width)


def given_clusters(given: PseudoLabels, groups: slice, points: Tensor) -> clustering.Clusters:
    """Pseudo-labels of some groups of equal size as if k-means had found them in ``points``."""
    return clustering.Clusters(
        torch.stack([labels.to(points.device).long() for labels in given.global_labels[groups]]),
        torch.stack([centroids.to(points) for centroids in given.global_centroids[groups]]),
    )


def _permutation(chance: Chance, given: PseudoLabels | None) -> Tensor:
    if given is None or given.position_permutation is None:
        return chance.permutation
    return given.position_permutation.long()


def _image_radii(tokens: Tensor, chance: Chance, given: PseudoLabels | None) -> Tensor:
    """Mean cluster radius within each image, float64 [B]."""
    if given is None:
        labels, clusters = clustering.kmeans(tokens, chance.local).labels, chance.local.shape[1]
    else:
        labels = given.local_labels.to(tokens.device).long()
        clusters = int(labels.max()) + 1
    radii = radius.cluster_radii(tokens, labels, clusters)
    return radius.mean_radius(radii, radius.cluster_sizes(labels, clusters))


def _groups(tokens: Tensor, group: int, chance: Chance, given: PseudoLabels | None) -> Groups:
    """Separation and radii of each group, float64 [G] on the CPU."""
    found: list[Groups] = []
    for which, points in blocks(tokens, group):
        if given is None:
            labels, centroids = clustering.kmeans(points, chance.groups[which, : points.shape[1]])
        else:
            labels, centroids = given_clusters(given, which, points)
        separation = points.new_empty(points.shape[0], dtype=torch.float64)
        fill = partial(_fill_separation, separation, points, labels, centroids)
        item = points[0].numel() * points.element_size()
        chunks.run(fill, chunks.chunks(points.shape[0], item, points.device), points.device)
        radii = radius.cluster_radii(points, labels, centroids.shape[1])
        counted = (radius.cluster_sizes(labels, centroids.shape[1]) > 1).sum(1).double()
        found.append(Groups(separation.cpu(), radii.sum(1).cpu(), counted.cpu()))
    return Groups(*(torch.cat(part) for part in zip(*found, strict=True)))


def _fill_separation(
    separation: Tensor, points: Tensor, labels: Tensor, centroids: Tensor, part: slice
) -> None:
    offsets = terms.offsets_to_nearest_other(points[part], labels[part], centroids[part])
    separation[part] = torch.linalg.vector_norm(offsets, dim=-1).mean(1, dtype=torch.float64)


def _dimensions(tokens: Tensor, permutation: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Effective dimension at each position [N], and at S positions without each block of images [S, J]."""
    images, positions, width = tokens.shape
    every = torch.arange(images, device=tokens.device)
    dimensions = torch.empty(positions, dtype=torch.float64, device=tokens.device)

    def measure_position(part: slice) -> None:
        dimensions[part] = terms.effective_dimension(tokens[every, permutation[:, part].mT])

    item = images * width * 8
    chunks.run(measure_position, chunks.chunks(positions, item, tokens.device), tokens.device)

    block = uncertainty.left_out_block(images, group)
    sampled, count = min(JACKKNIFE_POSITIONS, positions), images // block
    without = torch.full((sampled, count), torch.nan, dtype=torch.float64, device=tokens.device)
    if block == images:  # nothing is left
        return dimensions.cpu(), without.cpu()
    whole = [tokens[every, permutation[:, position]].double() for position in range(sampled)]
    products = [spectra.smaller_gram(rows) for rows in whole]

    def leave_out(piece: tuple[int, slice]) -> None:
        position, part = piece
        gram = spectra.gram_without(products[position], whole[position], block, part)
        without[position, part] = terms.dimension(spectra.root_values(gram), min(images, width))

    parts = list(chunks.chunks(count, products[0].nbytes, tokens.device))
    chunks.run(leave_out, [(position, part) for position in range(sampled) for part in parts], tokens.device)
    return dimensions.cpu(), without.cpu()


def _components(
    scale: Tensor,
    scale_parts: Tensor,
    image_radii: Tensor,
    groups: Groups,
    dimensions: Tensor,
    dimensions_without: Tensor,
    group: int,
    width: int,
) -> Components:
    """Means and errors of what was measured, all float64 on the CPU."""
    images, count = image_radii.numel(), groups.separation.numel()
    group_of_image = torch.arange(images) // group

    def by_group(parts: Tensor) -> Tensor:
        return parts.new_zeros(count).index_add_(0, group_of_image, parts)

    def over_scale(value: Tensor, parts: Tensor, scale_parts: Tensor) -> tuple[float, Tensor]:
        if scale == 0:  # all tokens equal: nothing is wide, nothing is apart
            return 0.0, torch.zeros_like(parts)
        return float(value / scale), uncertainty.in_units_of(scale, scale_parts, value, parts)

    scale_by_group = by_group(scale_parts)
    m_inter, inter_parts = over_scale(
        groups.separation.mean(), uncertainty.of_mean(groups.separation), scale_by_group
    )
    m_intra_image, image_parts = over_scale(image_radii.mean(), uncertainty.of_mean(image_radii), scale_parts)
    batch_radius, radius_parts = uncertainty.ratio(
        groups.radius_sum, groups.radius_count, radius.RADIUS_WITHOUT_CLUSTERS
    )
    m_intra_batch, batch_parts = over_scale(batch_radius, radius_parts, scale_by_group)
    separability_parts = inter_parts - (by_group(image_parts) + batch_parts) / 2
    dim_parts = uncertainty.of_left_out(dimensions_without)
    block = uncertainty.left_out_block(images, group)
    covered = (
        dim_parts.shape[1] * block / images
    )  # the last images may be fewer than a block and never left out
    separability_se = uncertainty.standard_error(separability_parts)
    m_dim_se = uncertainty.standard_error_over_positions(dim_parts, dimensions.numel()) / math.sqrt(covered)
    correlation = uncertainty.correlation_of_blocks(
        separability_parts, dim_parts.mean(0), group=group, block=block
    )
    return Components(
        m_inter=m_inter,
        m_intra_image=m_intra_image,
        m_intra_batch=m_intra_batch,
        m_dim=float(dimensions.mean()),
        m_inter_se=uncertainty.standard_error(inter_parts),
        m_intra_image_se=uncertainty.standard_error(image_parts),
        m_intra_batch_se=uncertainty.standard_error(batch_parts),
        m_dim_se=m_dim_se,
        separability_se=separability_se,
        separability_dim_cov=correlation * separability_se * m_dim_se,
        images=images,
        tokens=dimensions.numel(),
        width=width,
    )
