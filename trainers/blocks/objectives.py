"""Loss terms and target assignments that two or more methods share: pure functions, float32 inside."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dse_monitor.trainers.distributed import sum_over_processes, world_size


def centred_softmax(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Teacher targets softmax((t - c) / tau) over the last axis, without gradient.

    Args:
        logits: raw teacher output [..., K].
        centre: broadcastable to ``logits``.
        temperature: tau.
    """
    return F.softmax((logits.detach().float() - centre) / temperature, dim=-1)


def pair_cross_entropies(student_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every teacher view with every student view, mean over the batch.

    Entry (i, v) = mean_B( - sum_K targets[i] * log_softmax(student_logits[v] / temperature) ). A method
    picks the pairs it wants: DINO, EsViT and iBOT average all i != v, Mugs averages large and small crops
    apart.

    Args:
        student_logits: [V, B, K].
        targets: probabilities [T, B, K], no gradient.
        temperature: student temperature.

    Returns:
        [T, V].
    """
    with torch.autocast(student_logits.device.type, enabled=False):  # the product would run in half precision
        log_p = F.log_softmax(student_logits.float() / temperature, dim=-1)
        return -(targets.flatten(1) @ log_p.flatten(1).T) / student_logits.shape[1]


def mean_over_distinct(pairs: Tensor) -> Tensor:
    """Mean of a [T, V] table over the T * (V - 1) entries with different indices."""
    other = ~torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs[other].mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Balanced soft assignment of samples to columns (SwAV section 3.2, ReSA), over all processes.

    Q = exp(scores / epsilon), divided by its total; then alternately columns of ``scores`` (prototypes) to
    mass 1 / K and samples to mass 1 / B; at last every sample's row sums to 1. No maximum is subtracted, as
    released: float32 is needed.

    Args:
        scores: [B, K], this process's samples.
        epsilon: temperature.
        iterations: rounds.

    Returns:
        [B, K], rows sum to 1.
    """
    q = torch.exp(scores.float() / epsilon).T  # [K, B]
    prototypes, samples = q.shape[0], q.shape[1] * world_size()
    q = q / sum_over_processes(q.sum())
    for _ in range(iterations):
        q = q / sum_over_processes(q.sum(1, keepdim=True)) / prototypes
        q = q / q.sum(0, keepdim=True) / samples
    return (q * samples).T


def queue_contrast(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE with one positive per row and the columns of a queue as negatives (MoCo; DenseCL, Mugs).

    Args:
        queries: unit vectors [R, C].
        keys: their positives, unit vectors [R, C], no gradient.
        queue: unit columns [C, Q], no gradient.
        temperature: tau.

    Returns:
        mean over R of the cross-entropy of [q.k, q.Q] / tau with class 0.
    """
    queries = queries.float()
    positive = (queries * keys.detach().float()).sum(1, keepdim=True)
    logits = torch.cat([positive, queries @ queue.detach().float()], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def off_diagonal(matrix: Tensor) -> Tensor:
    """Entries of [..., D, D] off the diagonal, as [..., D * (D - 1)] (Barlow Twins, VICReg)."""
    size = matrix.shape[-1]
    return matrix.flatten(-2)[..., :-1].unflatten(-1, (size - 1, size + 1))[..., 1:].flatten(-2)


def variance_hinge(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Mean of relu(1 - sqrt(var + epsilon)) with the unbiased variance over axis 0 (VICReg, VICRegL)."""
    return F.relu(1 - torch.sqrt(x.float().var(0) + epsilon)).mean()
