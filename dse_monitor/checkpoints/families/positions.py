"""Position tables that a network makes for itself when it is built, so that its files lack them.

Shapes: N patches, D width.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dse_monitor.checkpoints.families.network import IMAGE_SIZE, Hints, NotThisNetwork, Piece

if TYPE_CHECKING:
    from torch import Tensor

SINUSOID = "sinusoid"  # value of Hints.details["positions"], set by a layout whose code makes this table


def not_stored(width: int, patch: int, hints: Hints) -> Piece:
    """The table of a network whose file has none, as the layout's own code makes it.

    Raises:
        NotThisNetwork: nothing says how it is made.
    """
    if hints.details.get("positions") != SINUSOID:
        raise NotThisNetwork(
            "there is no pos_embed: its positions are rotary, or a table that its code makes anew; "
            "neither can be read off the tensors"
        )
    rows, columns = (side // patch for side in hints.image_size or (IMAGE_SIZE, IMAGE_SIZE))
    if not rows * columns or width % 2:
        raise NotThisNetwork(f"no table of sinusoids for width {width} and {rows} x {columns} patches")
    return Piece((), (1, rows * columns, width), partial(_table, rows * columns, width))


def sinusoid(count: int, width: int) -> Tensor:
    """Sines at even, cosines at odd places, of position / 10000^(2 * (j // 2) / D); [1, N, D].

    The positions count the patches row by row (arXiv 1706.03762, section 3.5; so pengzhiliang/MAE-pytorch).
    """
    import torch

    place = torch.arange(width, dtype=torch.float64)
    angle = torch.arange(count, dtype=torch.float64)[:, None] / 10000 ** (2 * (place // 2) / width)
    return torch.where(place % 2 == 0, angle.sin(), angle.cos()).float()[None]


def _table(count: int, width: int, _: list[Tensor]) -> Tensor:
    return sinusoid(count, width)
