"""The four numbers DSE is made of, with their errors. Standard library only, so records need no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


class NonFiniteFeatures(ValueError):
    """NaN or infinity among the features: the message says how many, and in which images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """DSE of one network in parts; DSE itself needs a lambda, so it is a method.

    Errors are standard errors over images: how far the number would move on another sample of the same images
    from the same source (see docs/metric.md). A field is ``nan`` where one sample gives no error.

    Attributes:
        m_inter: mean distance of a token to the nearest centroid other than its own, in units of the feature
            scale.
        m_intra_image: mean cluster radius inside single images, in units of the feature scale.
        m_intra_batch: mean cluster radius inside groups of images, in units of the feature scale.
        m_dim: effective rank of the tokens at one position over its bound, in (0, 1].
        m_inter_se: standard error of ``m_inter``.
        m_intra_image_se: standard error of ``m_intra_image``.
        m_intra_batch_se: standard error of ``m_intra_batch``.
        m_dim_se: standard error of ``m_dim``.
        separability_se: standard error of ``separability`` (its parts are correlated, so it is no sum of
            theirs).
        separability_dim_cov: covariance of the errors of ``separability`` and ``m_dim``.
        images: images measured.
        tokens: tokens per image (N).
        width: feature width (D).
    """

    m_inter: float
    m_intra_image: float
    m_intra_batch: float
    m_dim: float
    m_inter_se: float = math.nan
    m_intra_image_se: float = math.nan
    m_intra_batch_se: float = math.nan
    m_dim_se: float = math.nan
    separability_se: float = math.nan
    separability_dim_cov: float = math.nan
    images: int = 0
    tokens: int = 0
    width: int = 0

    @property
    def m_intra(self) -> float:
        """Mean of the two radii (arXiv 2510.17299, released code)."""
        return (self.m_intra_image + self.m_intra_batch) / 2

    @property
    def separability(self) -> float:
        """``m_inter - m_intra``: how far apart the clusters are, less how wide they are."""
        return self.m_inter - self.m_intra

    def dse(self, lam: float = 1.0) -> float:
        """DSE at a lambda: ``separability + lam * m_dim``. Higher is better."""
        return self.separability + lam * self.m_dim

    def dse_se(self, lam: float = 1.0) -> float:
        """Standard error of :meth:`dse` at a lambda, exact because the covariance is kept."""
        variance = self.separability_se**2 + lam**2 * self.m_dim_se**2 + 2 * lam * self.separability_dim_cov
        return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
