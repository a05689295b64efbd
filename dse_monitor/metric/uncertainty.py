"""Standard errors of the components over images: linear influence, and a jackknife for m_dim.

Every component is written as a sum of contributions, one for each image or group of images, to first order
in how often that image was drawn. Contributions of independent images are independent, so their scatter
gives the variance; the feature scale that all of them share enters through its own contributions.
docs/metric.md says what is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

JACKKNIFE_BLOCKS = (
    16  # blocks left out in turn, or up to twice as many: an error right to about a fifth; ours
)


def of_mean(values: Tensor) -> Tensor:
    """Contribution of each value [S] to the deviation of their plain mean."""
    return (values - values.mean()) / values.numel()


def ratio(numerators: Tensor, denominators: Tensor, otherwise: float) -> tuple[Tensor, Tensor]:
    """Ratio of two sums of [S], and each unit's contribution to its deviation; ``otherwise`` over zero."""
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


def correlation_of_blocks(group_parts: Tensor, block_parts: Tensor, *, group: int, block: int) -> float:
    """Correlation of a sum over groups with a sum over blocks of images, from the scatter of their parts.

    A correlation rather than a covariance: both scatters come from the same units, so it lies within one,
    whatever is done to either error afterwards. It is shrunk a little, since few units look more alike than
    they are, and an error of exactly zero would follow from a correlation of one.

    Args:
        group_parts: contributions of the groups [G], ``group`` images each, the last perhaps fewer.
        block_parts: contributions of the blocks [J], ``block`` images each, a divisor or multiple of
            ``group``.
        group: images in a group.
        block: images in a block.

    Returns:
        In (-1, 1); 0 for two units, which always seem alike, and where one sum does not vary; nan for one.
    """
    if block > group:
        units, second = len(block_parts), block_parts
        first = group_parts[: units * block // group].view(units, -1).sum(1)
    else:
        units, first = len(group_parts), group_parts
        group_of_block = torch.arange(len(block_parts)) * block // group
        second = block_parts.new_zeros(units).index_add_(0, group_of_block, block_parts)
    if units < 2:
        return math.nan
    first, second = first - first.mean(), second - second.mean()
    size = float(first.norm() * second.norm())
    return float(first @ second) / size * (units - 2) / (units - 1) if size > 0 else 0.0


def left_out_block(images: int, group: int) -> int:
    """Images in a block that the jackknife leaves out: the most that make JACKKNIFE_BLOCKS blocks, or 1.

    Blocks are parts of groups or unions of groups, so that either can be added up to the other.
    """
    divisors = [size for size in range(1, group + 1) if group % size == 0]
    multiples = range(2 * group, images // JACKKNIFE_BLOCKS + 1, group)
    return max((size for size in (*divisors, *multiples) if images // size >= JACKKNIFE_BLOCKS), default=1)


def of_left_out(values: Tensor) -> Tensor:
    """Contribution of each of J blocks to a statistic, from its ``values`` [..., J] without that block."""
    blocks = values.shape[-1]
    return (values.mean(-1, keepdim=True) - values) * ((blocks - 1) / blocks)


def standard_error_over_positions(parts: Tensor, positions: int) -> float:
    """Standard deviation of a sum whose contributions are means over positions, from some positions.

    A mean over S of N positions scatters more between units than the mean over all N; the surplus is (1/S -
    1/N) times the variance within a unit (sampling without replacement) and is taken off.

    Args:
        parts: contributions [S, U] at S positions of U blocks of images.
        positions: N.

    Returns:
        The standard error, no less than if positions were independent; nan for fewer than three units.
    """
    sampled, units = parts.shape
    total = _variance(parts.mean(0))
    if units < 3:  # a single image left over has effective rank one, whatever it holds
        return math.nan
    if sampled < 2 or sampled == positions:
        return math.sqrt(total)
    within = float(parts.var(0).sum())
    return math.sqrt(max(total - (1 / sampled - 1 / positions) * within, within / positions))


def _variance(parts: Tensor) -> float:
    return float(parts.var() * parts.numel()) if parts.numel() > 1 else math.nan
