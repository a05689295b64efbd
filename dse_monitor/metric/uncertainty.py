"""Standard errors of the components over images, by linear influence (infinitesimal jackknife).

Every component is written as a sum of contributions, one for each image or group of images, to first order in how often
that image was drawn. Contributions of independent images are independent, so their scatter gives the variance; the
feature scale that all of them share enters through its own contributions. docs/metric.md says what is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def of_mean(values: Tensor) -> Tensor:
    """Contribution of each value [S] to the deviation of their plain mean."""
    return (values - values.mean()) / values.numel()


def ratio(numerators: Tensor, denominators: Tensor, otherwise: float) -> tuple[Tensor, Tensor]:
    """Ratio of the sums of [S] and [S], and each unit's contribution to its deviation; ``otherwise`` over zero."""
    total = denominators.sum()
    if total == 0:
        return numerators.new_tensor(otherwise), torch.zeros_like(numerators)
    value = numerators.sum() / total
    return value, (numerators - value * denominators) / total


def in_units_of(scale: Tensor, scale_parts: Tensor, value: Tensor, parts: Tensor) -> Tensor:
    """Contributions to ``value / scale`` when both deviate: delta method."""
    return (parts - value / scale * scale_parts) / scale


def standard_error(parts: Tensor) -> float:
    """Standard deviation of the sum of independent contributions [S]; nan for fewer than two."""
    return math.sqrt(_variance(parts))


def covariance(first: Tensor, second: Tensor) -> float:
    """Covariance of two sums over the same independent units [S]; nan for fewer than two."""
    count = first.numel()
    if count < 2:
        return math.nan
    return float((first - first.mean()) @ (second - second.mean()) * (count / (count - 1)))


def standard_error_over_positions(parts: Tensor, positions: int) -> float:
    """Standard deviation of a sum over images whose contributions are means over positions, from some positions.

    A mean over S of N positions scatters more between images than the mean over all N; the surplus is (1/S - 1/N)
    times the variance within an image (sampling without replacement) and is taken off.

    Args:
        parts: contributions [S, B] at S positions of B images.
        positions: N.

    Returns:
        The standard error, no less than if positions were independent; nan for fewer than two images.
    """
    sampled, images = parts.shape
    total = _variance(parts.mean(0))
    if images < 2 or sampled < 2 or sampled == positions:
        return math.sqrt(total)
    within = float(parts.var(0).mean()) * images
    return math.sqrt(max(total - (1 / sampled - 1 / positions) * within, within / positions))


def _variance(parts: Tensor) -> float:
    return float(parts.var() * parts.numel()) if parts.numel() > 1 else math.nan
