"""What translations do with tensors they have not read: rename, cut, join and reshape them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dse_monitor.checkpoints.families.network import Piece
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


def rows(piece: Piece, start: int, stop: int) -> Piece:
    """Rows start..stop of a tensor."""
    make = piece.make
    return Piece(
        piece.sources, (stop - start, *piece.shape[1:]), lambda tensors: make(tensors)[start:stop].clone()
    )


def stacked(pieces: list[Piece | None], rows: int) -> Piece:
    """Tensors one above the other; None stands for `rows` zeros (a bias that is fixed at zero)."""
    given = [piece for piece in pieces if piece is not None]
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
    """A tensor under another shape of as many numbers."""
    make = piece.make
    return Piece(piece.sources, shape, lambda tensors: make(tensors).reshape(shape))


def joined_qkv(pieces: Pieces) -> Pieces:
    """Separate query, key and value projections (``attn.q``, ``.k``, ``.v``) as one ``attn.qkv``.

    A missing bias among present ones is zero, as in BEiT and DINOv3, whose keys have none.
    """
    out = {name: piece for name, piece in pieces.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    blocks = {name.removesuffix(".attn.q.weight") for name in pieces if name.endswith(".attn.q.weight")}
    for block in blocks:
        for kind in ("weight", "bias"):
            parts = [pieces.get(f"{block}.attn.{part}.{kind}") for part in "qkv"]
            if any(part is not None for part in parts):
                rows = pieces[f"{block}.attn.q.weight"].shape[0]
                out[f"{block}.attn.qkv.{kind}"] = stacked(parts, rows)
    return out
