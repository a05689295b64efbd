"""Singular values of many matrices, with gradients that stay finite.

They come from the smaller Gram matrix in float64: a value is then right to about 2e-8 of the largest one,
closer than a float32 decomposition of the matrix itself, and several times sooner.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dse_monitor.metric import chunks

SOLVED_IN_BATCHES = 32  # rows; cuSOLVER's Jacobi takes whole batches of matrices up to this size
TRIANGLE_BLOCK = 96  # columns; only blocks on and below the diagonal of a Gram matrix are computed; ours


def singular_values(matrices: Tensor) -> Tensor:
    """Singular values of matrices [..., M, D], ascending, float64 [..., min(M, D)].

    The gradient is finite where values repeat or vanish: no differences of values are divided by, and a
    value that is zero within the rounding of the Gram matrix passes nothing back.
    """
    return _SingularValues.apply(matrices)  # pyright: ignore[reportReturnType]


class _SingularValues(torch.autograd.Function):
    """d sigma_j = u_j v_j^T, so incoming g becomes U diag(g) V^T = X V diag(g / sigma) V^T.

    The last product is one in the matrices' own type: what a direction gets is then right to the rounding of
    that type times the largest value over its own, about what the rounding of the matrices already costs it.
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        gram = smaller_gram(matrices)
        if not ctx.needs_input_grad[0]:
            return root_values(gram)
        squares, vectors = _eigh(gram)
        values = _roots(squares)
        ctx.save_for_backward(matrices, values, vectors)
        return values

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> Tensor:
        (gradient,) = gradients
        matrices, values, vectors = ctx.saved_tensors
        middle = _over_values(vectors, values, gradient).to(matrices.dtype)
        return middle @ matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices @ middle


def root_values(gram: Tensor) -> Tensor:
    """Singular values of the matrices whose products [..., R, R] these are, ascending [..., R].

    Args:
        gram: float64, right up to the diagonal.
    """
    return _roots(_eigvalsh(gram))


def inverse_root(gram: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
    """The same singular values, and gains [...] times the inverse of the root of ``gram``, [..., R, R].

    Directions whose value is zero within rounding are left out of the inverse.
    """
    squares, vectors = _eigh(gram)
    values = _roots(squares)
    return values, _over_values(vectors, values, gains[..., None])


def _over_values(vectors: Tensor, values: Tensor, gains: Tensor) -> Tensor:
    """V diag(gains / values) V^T, zero where a value is."""
    return (vectors * torch.where(values > 0, gains / values, 0.0)[..., None, :]) @ vectors.mT


def _roots(squares: Tensor) -> Tensor:
    """Singular values from eigenvalues [..., R]; zero where an eigenvalue is rounding of the largest."""
    rounding = torch.finfo(squares.dtype).eps * 4 * (squares.shape[-1] + 16)
    return torch.where(squares > squares[..., -1:] * rounding, squares, 0.0).sqrt()


def _eigvalsh(gram: Tensor) -> Tensor:
    if not _one_by_one(gram):
        return torch.linalg.eigvalsh(gram)
    (values,) = _on_host(lambda host: (torch.linalg.eigvalsh(host),), gram)
    return values


def _eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    if not _one_by_one(gram):
        return torch.linalg.eigh(gram)
    values, vectors = _on_host(torch.linalg.eigh, gram)
    return values, vectors


def _on_host(decompose: Callable[[Tensor], tuple[Tensor, ...]], gram: Tensor) -> list[Tensor]:
    """What ``decompose`` makes of [C, R, R], made of [..., R, R] piece by piece on the processor's cores."""
    host = gram.flatten(0, -3).cpu()
    pieces = list(chunks.chunks(len(host), host[0].nbytes, host.device))
    found: dict[int, tuple[Tensor, ...]] = {}

    def solve(piece: int) -> None:
        found[piece] = decompose(host[pieces[piece]])

    chunks.run(solve, range(len(pieces)), host.device)
    joined = (torch.cat(parts) for parts in zip(*(found[k] for k in range(len(pieces))), strict=True))
    return [part.unflatten(0, gram.shape[:-2]).to(gram.device) for part in joined]


def _one_by_one(gram: Tensor) -> bool:
    """Whether the device would decompose these one after the other, so that processor cores are far quicker.

    Releases of torch up to 2.11 at least do so on CUDA for matrices above 32 rows, at one or two ms each.
    """
    many = gram.ndim > 2 and gram.shape[:-2].numel() > 1
    return many and gram.shape[-1] > SOLVED_IN_BATCHES and _loops(gram.device)


@functools.cache
def _loops(device: torch.device) -> bool:
    """Asked of the device once per process: 32 matrices take it many times as long as one."""
    if device.type != "cuda":
        return False
    matrix = torch.eye(SOLVED_IN_BATCHES + 16, dtype=torch.float64, device=device)

    def seconds(count: int) -> float:
        several = matrix.expand(count, -1, -1)
        torch.linalg.eigvalsh(several)
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.linalg.eigvalsh(several)
        torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return seconds(32) > 8 * seconds(1)


def smaller_gram(matrices: Tensor) -> Tensor:
    """Products of rows [..., M, M] or columns [..., D, D], the fewer; right up to the diagonal."""
    rows, columns = matrices.shape[-2:]
    if rows <= columns:
        exact = matrices.double()
        return lower_products(exact)
    parts = (lower_products(matrices[..., part, :].double().mT) for part in _row_chunks(matrices))
    return functools.reduce(Tensor.add_, parts)


def gram_without(gram: Tensor, matrix: Tensor, block: int, which: slice) -> Tensor:
    """What :func:`smaller_gram` says of a matrix without a block of its rows, for several blocks.

    Taken from the products of all rows, which were the larger part of the work. Where those are of columns,
    rows are subtracted: the squares of singular values stay right to the rounding of the largest.

    Args:
        gram: of the whole matrix, right up to the diagonal.
        matrix: float64 [M, D].
        block: rows in a block, fewer than M.
        which: blocks to leave out, in turn, counted from the first row.

    Returns:
        [J, M - block, M - block] if the products are of rows, else [J, D, D].
    """
    rows, columns = matrix.shape
    starts = torch.arange(which.start, which.stop, device=matrix.device) * block
    if rows <= columns:
        every = torch.arange(rows - block, device=matrix.device)
        kept = every + block * (every >= starts[:, None])
        return gram[kept[:, :, None], kept[:, None, :]]
    left_out = matrix[which.start * block : which.stop * block].unflatten(0, (-1, block))
    return gram - lower_products(left_out.mT)


def lower_products(rows: Tensor) -> Tensor:
    """Products [..., M, M] of rows but most of those above the diagonal, which eigenvalues do not need."""
    count = rows.shape[-2]
    if count <= 2 * TRIANGLE_BLOCK:
        return rows @ rows.mT
    gram = rows.new_zeros(*rows.shape[:-1], count)
    for start in range(0, count, TRIANGLE_BLOCK):
        stop = min(start + TRIANGLE_BLOCK, count)
        gram[..., start:stop, :stop] = rows[..., start:stop, :] @ rows[..., :stop, :].mT
    return gram


def _row_chunks(matrices: Tensor) -> Iterator[slice]:
    """Rows [..., M, :] to convert to float64 at a time: two pieces' worth, for products gain from length."""
    rows = matrices.shape[-2]
    return chunks.chunks(rows, matrices.numel() // rows * 4, matrices.device)
