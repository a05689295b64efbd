"""DSE written as plainly as its definition: the oracle of the fast paths and the yardstick of the benchmarks.

It has the structure of the code released with arXiv 2510.17299, one k-means for each image and group, one SVD
for each cluster and position, and shares nothing with ``dse_monitor.metric``.
"""

import math

import torch


def kmeans(points, clusters, generator, iterations=20, tolerance=1e-4):
    """One problem [M, D]: labels of the last assignment [M] and centroids after the last update [K, D]."""
    clusters = min(clusters, len(points))
    centroids = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centroids) < clusters:
        weights = torch.cdist(points, centroids).min(1).values
        if weights.sum() == 0:
            weights = torch.ones_like(weights)
        centroids = torch.cat([centroids, points[torch.multinomial(weights, 1, generator=generator)]])
    for _ in range(iterations):
        labels = torch.cdist(points, centroids).argmin(1)
        updated = torch.stack(
            [points[labels == k].mean(0) if (labels == k).any() else centroids[k] for k in range(clusters)]
        )
        shift = (updated - centroids).norm().item()
        centroids = updated
        if shift < tolerance:
            break
    return labels, centroids


def radii(points, labels, clusters):
    """Radius of every cluster of two tokens or more, a list."""
    found = []
    for k in range(clusters):
        tokens = points[labels == k]
        if len(tokens) > 1:
            values = torch.linalg.svdvals(tokens - tokens.mean(0))
            found.append(values.sum() / math.sqrt(max(len(tokens) - 1, tokens.shape[1])))
    return found


def separation(points, labels, centroids):
    """Mean distance to the nearest centroid but one's own."""
    distances = torch.cdist(points, centroids, compute_mode="donot_use_mm_for_euclid_dist")
    own = torch.nn.functional.one_hot(labels.long(), len(centroids)).bool()
    return distances.masked_fill(own, math.inf).min(1).values.mean()


def effective_dimension(tokens):
    """Effective rank of [M, D] over min(M, D)."""
    values = torch.linalg.svdvals(tokens)
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp() / min(tokens.shape)


def cluster(tokens, group, local_clusters, global_clusters, generator):
    """Labels of every image [B, N]; labels and centroids of every group; permutation of positions [B, N]."""
    local = torch.stack([kmeans(image, local_clusters, generator)[0] for image in tokens])
    groups = [
        kmeans(tokens[start : start + group].flatten(0, 1), global_clusters, generator)
        for start in range(0, len(tokens), group)
    ]
    permutation = torch.stack([torch.randperm(tokens.shape[1], generator=generator) for _ in tokens])
    return local, [labels for labels, _ in groups], [centroids for _, centroids in groups], permutation


def components(features, group, normalize, local, labels, centroids, permutation):
    """(m_inter, m_intra_image, m_intra_batch, m_dim) of features [B, N, D] for given clusters."""
    tokens = torch.nn.functional.normalize(features, dim=-1) if normalize else features
    scale = (tokens - tokens.mean((0, 1))).norm(dim=-1).mean()
    image_radii, group_radii, separations = [], [], []
    for image, own in zip(tokens, local, strict=True):
        found = radii(image, own, int(own.max()) + 1)
        image_radii.append(sum(found) / len(found) if found else torch.tensor(1.0))
    for index, start in enumerate(range(0, len(tokens), group)):
        points = tokens[start : start + group].flatten(0, 1)
        group_radii += radii(points, labels[index], len(centroids[index]))
        separations.append(separation(points, labels[index], centroids[index]))
    m_intra_batch = torch.stack(group_radii).mean() if group_radii else torch.tensor(1.0)
    permuted = torch.stack([image[order] for image, order in zip(tokens, permutation, strict=True)])
    m_dim = torch.stack([effective_dimension(permuted[:, n]) for n in range(tokens.shape[1])]).mean()
    m_inter = torch.stack(separations).mean()
    return m_inter / scale, torch.stack(image_radii).mean() / scale, m_intra_batch / scale, m_dim


def measure(features, *, group=8, local_clusters=3, global_clusters=24, normalize=True, seed=0):
    """The whole metric with its own clusters."""
    tokens = torch.nn.functional.normalize(features, dim=-1) if normalize else features
    generator = torch.Generator().manual_seed(seed)
    clusters = cluster(tokens, group, local_clusters, global_clusters, generator)
    return components(features, group, normalize, *clusters)


def regularizer_dse(features, group, normalize, local, labels, centroids):
    """DSE as the regulariser defines it, differentiable by autograd through every SVD; lambda = 1."""
    identity = torch.arange(features.shape[1]).expand(features.shape[:2])
    m_inter, image, batch, _ = components(features, group, normalize, local, labels, centroids, identity)
    tokens = torch.nn.functional.normalize(features, dim=-1) if normalize else features
    return m_inter - (image + batch) / 2 + effective_dimension(tokens.flatten(0, 1))
