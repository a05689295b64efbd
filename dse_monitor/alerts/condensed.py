"""A long run in a bounded number of columns: the newest checkpoints one by one, older ones as block means.

A judgement looks at everything a run has been so far, and each checkpoint is judged, so time would grow with
the square of their number. DSE is linear in its terms: the mean of a block's terms gives the mean of its DSE
at any lambda, so nothing but short peaks of long ago is lost, and only beyond some thousands of checkpoints.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEWEST = 1024  # checkpoints kept one by one at least; ours
BLOCKS = 1024  # blocks before them, fewer than that: runs of nearly two thousand are still exact; ours


class Condensed:
    """Columns of numbers, added at the end, of which a bounded number is kept.

    What is kept depends on the columns and their order alone. Blocks have one length, a power of two.

    Args:
        rows: numbers in a column.
        newest: columns kept one by one at least.
        blocks: fewer blocks than that are kept, an even number.
    """

    def __init__(self, rows: int, newest: int = NEWEST, blocks: int = BLOCKS):
        self._least, self._most = newest, blocks
        self._table: Floats = np.empty((rows, 2 * newest + blocks))
        self._first, self._end = 0, 0  # of the columns in use
        self._whole = 0  # blocks among them, the first ones
        self.block = 1
        self.count = 0

    def append(self, column: Floats) -> None:
        """Add a column [rows]; in constant time on average."""
        if self._end == self._table.shape[1]:
            self._make_room()
        self._table[:, self._end] = column
        self._end += 1
        self.count += 1
        while self._end - self._first - self._whole >= self._least + self.block:
            self._make_block()

    @property
    def table(self) -> Floats:
        """The columns, oldest first [rows, m]; a view that the next one may change."""
        return self._table[:, self._first : self._end]

    @property
    def lengths(self) -> Floats:
        """Of how many columns each is the mean [m]."""
        lengths = np.ones(self._end - self._first)
        lengths[: self._whole] = self.block
        return lengths

    def _make_block(self) -> None:
        """The oldest of the single columns become a block; of too many blocks, every two become one."""
        start = self._first + self._whole
        mean = self._table[:, start : start + self.block].mean(1)
        shift = self.block - 1  # what stands before it moves up
        if shift:
            self._table[:, self._first + shift : start + shift] = self._table[:, self._first : start].copy()
        self._first += shift
        self._table[:, self._first + self._whole] = mean
        self._whole += 1
        if self._whole == self._most:
            pairs = self._table[:, self._first : self._first + self._whole]
            halved = pairs.reshape(len(pairs), -1, 2).mean(2)
            self._first += self._whole - halved.shape[1]
            self._whole, self.block = halved.shape[1], 2 * self.block
            self._table[:, self._first : self._first + self._whole] = halved

    def _make_room(self) -> None:
        kept = self.table.copy()
        self._first, self._end = 0, kept.shape[1]
        if 2 * self._end > self._table.shape[1]:
            self._table = np.empty((len(kept), 2 * self._table.shape[1]))
        self._table[:, : self._end] = kept
