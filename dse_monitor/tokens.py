"""What an encoder returns for a batch of images. Importing this loads no torch.

Shapes: B images, N dense tokens per image, R registers, D feature width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Tokens(NamedTuple):
    """The tokens of one layer.

    Attributes:
        dense: [B, N, D], the grid of patches or the map, row by row.
        cls: [B, D], the class token; None where the network has none.
        registers: [B, R, D], further tokens that belong to no patch (registers, a distillation token); None
            where the network has none.
    """

    dense: Tensor
    cls: Tensor | None = None
    registers: Tensor | None = None


def without_prefix(tokens: Tensor, prefix: int, *, has_cls: bool) -> Tokens:
    """Tokens [B, prefix + N, D] taken apart: the class token first where there is one, then registers."""
    first = int(has_cls)
    return Tokens(
        tokens[:, prefix:],
        tokens[:, 0] if has_cls else None,
        tokens[:, first:prefix] if prefix > first else None,
    )


def from_map(features: Tensor, *, channels_last: bool = False) -> Tokens:
    """A map [B, D, rows, columns] (or channels last), read row by row."""
    return Tokens(features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2))
