"""Other label-free numbers on the same features, shown beside DSE by name and never mixed into it.

Shapes: B images, N tokens per image, D feature width, M rows of any feature matrix.

LiDAR (arXiv 2312.04000) is not among them: it compares many augmented views of each image, and a checkpoint
is measured on one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dse_monitor.metric.components import NonFiniteFeatures
from dse_monitor.metric.precision import with_float64
from dse_monitor.metric.spectra import lower_products

RANKME_EPSILON = 1e-7  # added to each share; arXiv 2210.02885, section 3.1, for float32
FIRST_RANK = 11  # alpha-ReQ: ranks of the eigenvalues fitted; released code of Agrawal et al. 2022
LAST_RANK = 100
_FEWEST = 5  # eigenvalues below which a slope means nothing
_DEAD = 1e-12  # of the largest eigenvalue: below it is rounding
MOST_ROWS = 25_600  # tokens looked at; as many samples as arXiv 2210.02885 takes, section 3.1
_CHUNK = 4096  # rows turned to float64 at a time


def measure(features: Tensor) -> dict[str, float]:
    """RankMe and alpha-ReQ of the tokens themselves and of their mean per image.

    Of more than MOST_ROWS tokens only so many are looked at, evenly spaced: all of them would
    take a third of DSE's time and say the same to two thousandths.

    Args:
        features: [B, N, D], as given to :func:`dse_monitor.metric.measure`.

    Returns:
        ``rankme_dense``, ``rankme_pooled`` (in [1, D]), ``alpha_req_dense``, ``alpha_req_pooled`` (decay
        exponents; ``nan`` where there are too few eigenvalues).

    Raises:
        NonFiniteFeatures: there are NaN or infinite values.
        ValueError: the shape is not [B, N, D].
    """
    if features.ndim != 3:
        raise ValueError(f"features must be [B, N, D], found {tuple(features.shape)}")
    found = {}
    for name, rows in (("dense", _spaced(features.flatten(0, 1))), ("pooled", features.mean(1))):
        total, gram = _moments(rows)
        found[f"rankme_{name}"] = _rankme(gram, len(rows))
        found[f"alpha_req_{name}"] = _alpha_req(total, gram, len(rows))
    return found


def rankme(rows: Tensor) -> float:
    """Smooth rank of a feature matrix: exp(entropy of its singular values), arXiv 2210.02885, equation 1.

    p_k = s_k / sum(s) + 1e-7; exp(-sum p_k log p_k). Rows are not centred.

    Args:
        rows: [M, D].

    Returns:
        In [1, min(M, D)], up to the epsilon.
    """
    return _rankme(_moments(rows)[1], len(rows))


def alpha_req(rows: Tensor) -> float:
    """Decay exponent of the eigenvalues of the features' covariance: lambda_i proportional to i ** -alpha.

    Agrawal et al., "alpha-ReQ", NeurIPS 2022. The line through log eigenvalue over log rank is fitted to
    ranks 11 to 100 with weights 1 / rank, as in its released code. Fewer ranks are used where the features
    have fewer.

    Args:
        rows: [M, D].

    Returns:
        alpha; ``nan`` with fewer than five eigenvalues to fit.
    """
    return _alpha_req(*_moments(rows), len(rows))


def _spaced(rows: Tensor) -> Tensor:
    """At most MOST_ROWS of rows [M, D], the same of every checkpoint."""
    count = len(rows)
    if count <= MOST_ROWS:
        return rows
    return rows[torch.arange(MOST_ROWS, device=rows.device) * count // MOST_ROWS]


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sum [D] and Gram matrix [D, D], right up to the diagonal, of rows [M, D]; float64 on the CPU."""
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"rows must be a matrix [M, D] that is not empty, found {tuple(rows.shape)}")
    rows = with_float64(rows)
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        for part in rows.split(_CHUNK):
            part = part.double()
            total += part.sum(0).cpu()
            gram += lower_products(part.mT).cpu()
    if not bool(torch.isfinite(gram).all()):
        raise NonFiniteFeatures(f"the Gram matrix of {tuple(rows.shape)} features is not finite")
    return total, gram


def _rankme(gram: Tensor, rows: int) -> float:
    count = min(rows, len(gram))
    singular = torch.linalg.eigvalsh(gram).flip(0)[:count].clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny) + RANKME_EPSILON
    return float(torch.exp(-(share * share.log()).sum()))


def _alpha_req(total: Tensor, gram: Tensor, rows: int) -> float:
    mean = total / rows
    eigenvalues = torch.linalg.eigvalsh(gram / rows - mean[:, None] * mean).flip(0)
    alive = eigenvalues > _DEAD * eigenvalues[0].clamp_min(0)
    alive[min(rows - 1, len(gram)) :] = False  # centring takes one rank
    rank = torch.arange(1, len(eigenvalues) + 1, dtype=torch.float64)
    fitted = alive & (rank >= FIRST_RANK) & (rank <= LAST_RANK)
    if int(fitted.sum()) < _FEWEST:
        return float("nan")
    x, y, weight = rank[fitted].log(), eigenvalues[fitted].log(), 1 / rank[fitted]
    x, y = x - (weight * x).sum() / weight.sum(), y - (weight * y).sum() / weight.sum()
    return -float((weight * x * y).sum() / (weight * x * x).sum())
