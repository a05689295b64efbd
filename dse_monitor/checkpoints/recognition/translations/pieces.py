"""What translations do with tensors they have not read: rename, cut, join and reshape them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dse_monitor.checkpoints.families.network import NotThisNetwork, Piece
from dse_monitor.checkpoints.families.statedicts import Shape

if TYPE_CHECKING:
    from torch import Tensor

Pieces = dict[str, Piece]


def renamed(pieces: Mapping[str, Piece], rules: list[tuple[str, str]]) -> Pieces:
    """Names rewritten by the first regular expression that matches the whole name; the others stay."""
    out: Pieces = {}
    for name, piece in pieces.items():
        for pattern, replacement in rules:
            new, count = re.subn(f"^(?:{pattern})$", replacement, name)
            if count:
                name = new
                break
        if name:
            out[name] = piece
    return out


def first_axis(piece: Piece) -> int:
    """Size of the first axis.

    Raises:
        NotThisNetwork: the tensor is a single number.
    """
    if not piece.shape:
        raise NotThisNetwork(f"{piece.sources[0] if piece.sources else 'a tensor'} is a single number")
    return piece.shape[0]


def rows(piece: Piece, start: int, stop: int) -> Piece:
    """Rows start..stop of a tensor.

    Raises:
        NotThisNetwork: it has no rows.
    """
    first_axis(piece)
    make = piece.make
    return Piece(
        piece.sources, (stop - start, *piece.shape[1:]), lambda tensors: make(tensors)[start:stop].clone()
    )


def stacked(pieces: list[Piece | None], rows: int) -> Piece:
    """Tensors one above the other; None stands for `rows` zeros (a bias that is fixed at zero).

    Raises:
        NotThisNetwork: there is none, or they differ beyond their first axis.
    """
    given = [piece for piece in pieces if piece is not None]
    if not given or any(not piece.shape or piece.shape[1:] != given[0].shape[1:] for piece in given):
        shapes = ", ".join(f"{piece.sources[0]} {list(piece.shape)}" for piece in given if piece.sources)
        raise NotThisNetwork(
            f"tensors that belong together do not fit one above the other: {shapes or 'none'}"
        )
    width = given[0].shape[1:]
    counts = [len(piece.sources) if piece is not None else 0 for piece in pieces]

    def make(tensors: list[Tensor]) -> Tensor:
        import torch

        parts: list[Tensor] = []
        taken = 0
        for piece, count in zip(pieces, counts, strict=True):
            if piece is None:
                parts.append(tensors[0].new_zeros((rows, *width)))
            else:
                parts.append(piece.make(tensors[taken : taken + count]))
            taken += count
        return torch.cat(parts)

    total = sum(rows if piece is None else piece.shape[0] for piece in pieces)
    return Piece(tuple(source for piece in given for source in piece.sources), (total, *width), make)


def reshaped(piece: Piece, shape: Shape) -> Piece:
    """A tensor under another shape of as many numbers.

    Raises:
        NotThisNetwork: of another count of numbers.
    """
    if math.prod(piece.shape) != math.prod(shape):
        name = piece.sources[0] if piece.sources else "a tensor"
        raise NotThisNetwork(f"{name} is {list(piece.shape)}, which is no {list(shape)} in another form")
    make = piece.make
    return Piece(piece.sources, shape, lambda tensors: make(tensors).reshape(shape))


def joined_qkv(pieces: Pieces) -> Pieces:
    """Separate query, key and value projections (``attn.q``, ``.k``, ``.v``) as one ``attn.qkv``.

    A missing bias among present ones is zero, as in BEiT and DINOv3, whose keys have none.

    Raises:
        NotThisNetwork: a weight is missing, or shapes do not fit one above the other.
    """
    out = {name: piece for name, piece in pieces.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    blocks = {name.removesuffix(".attn.q.weight") for name in pieces if name.endswith(".attn.q.weight")}
    for block in blocks:
        for kind in ("weight", "bias"):
            parts = [pieces.get(f"{block}.attn.{part}.{kind}") for part in "qkv"]
            if kind == "weight" and any(part is None for part in parts):
                lacking = [part for part, piece in zip("qkv", parts, strict=True) if piece is None]
                raise NotThisNetwork(f"{block}.attn has no projection for {' and '.join(lacking)}")
            if any(part is not None for part in parts):
                rows = first_axis(pieces[f"{block}.attn.q.weight"])
                out[f"{block}.attn.qkv.{kind}"] = stacked(parts, rows)
    return out
