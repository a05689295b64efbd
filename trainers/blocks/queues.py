"""Fixed-length memory of past keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyQueue(nn.Module):
    """Ring of unit columns, started at random (DenseCL's two queues, Mugs' two).

    Attributes:
        columns: [C, Q].
        pointer: int64 [1], where the next key goes.
    """

    columns: Tensor
    pointer: Tensor

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.register_buffer("columns", F.normalize(torch.randn(width, length), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self._waiting: list[Tensor] = []

    def observe(self, keys: Tensor) -> None:
        """Remember keys [n, C] of all processes (gather first) until the optimiser step is over."""
        self._waiting.append(keys.detach())

    def update(self) -> None:
        """Push what was observed since the last update: negatives are always keys of earlier steps."""
        for keys in self._waiting:  # one after another: together they may be more than the queue holds
            self.push(keys)
        self._waiting.clear()

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Overwrite the oldest columns with keys [n, C] of all processes (gather first); wraps around.

        Raises:
            ValueError: more keys than the queue is long.
        """
        length = self.columns.shape[1]
        if len(keys) > length:
            raise ValueError(
                f"{len(keys)} keys do not fit a queue of {length}: make it longer, or the batch smaller"
            )
        where = (self.pointer + torch.arange(len(keys), device=keys.device)) % length
        # a new tensor rather than a write in place: a loss of this step may still hold the old one for its
        # backward
        self.columns = self.columns.index_copy(1, where, keys.T.to(self.columns.dtype))
        self.pointer = (self.pointer + len(keys)) % length
