"""The clusters that `measure` works with, for those who want to look at them. Shapes as in measurement.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dse_monitor.metric import clustering, measurement
from dse_monitor.metric.precision import with_float64


@torch.no_grad()
def first_labels(
    features: Tensor,
    count: int,
    *,
    group: int = 8,
    local_clusters: int = 3,
    global_clusters: int = 24,
    normalize: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Pseudo-labels of the first images of a batch, the same that `measure` of that batch uses.

    Args:
        features: the whole batch [B, N, D], for the draws depend on its shape.
        count: images wanted; only their groups are clustered.
        group: as in `measure`, and so are the others.
        local_clusters: clusters within one image.
        global_clusters: clusters within one group.
        normalize: whether tokens are divided by their lengths first.
        seed: of the clustering.

    Returns:
        For each token the cluster within its image and the cluster within its group, both int64 [n, N] on the
        CPU, n the smaller of `count` and B. No number stands for clusters of two images, or of two groups.

    Raises:
        ValueError: features or numbers of a wrong shape or range.
    """
    measurement.check_shape(features)
    measurement.check_counts(
        count=count, group=group, local_clusters=local_clusters, global_clusters=global_clusters
    )
    count, features = min(count, features.shape[0]), with_float64(features)
    with torch.inference_mode(False), torch.autocast(features.device.type, enabled=False):
        whole = -(-count // group) * group
        tokens, _ = measurement.as_tokens(features[:whole].detach(), normalize)
        chance = measurement.draw_chance(features.shape, group, local_clusters, global_clusters, seed)
        local = clustering.kmeans(tokens[:count], chance.local[:count]).labels.cpu()
        local += torch.arange(count)[:, None] * chance.local.shape[1]
        shared = []
        for which, points in measurement.blocks(tokens, group):
            labels = clustering.kmeans(points, chance.groups[which, : points.shape[1]]).labels.cpu()
            labels += torch.arange(which.start, which.stop)[:, None] * global_clusters
            shared.append(labels.reshape(-1, tokens.shape[1]))
    return local, torch.cat(shared)[:count]
