"""Tensors that were saved in pieces by several ranks: the boxes must fill the whole exactly."""

from __future__ import annotations

import math

from dse_monitor.checkpoints.formats.torch_zip import read_torch_zip
from dse_monitor.checkpoints.reading.contents import (
    ITEM_SIZES,
    Chunk,
    Opaque,
    Storage,
    TensorRef,
    row_major,
    shown,
)
from dse_monitor.errors import CorruptCheckpoint

MAX_SCATTERED = 1024  # pieces of one tensor that is cut along several axes; each is compared with each


def whole_of_pieces(dtype: str, shape: tuple[int, ...], chunks: tuple[Chunk, ...]) -> TensorRef | Opaque:
    """A tensor put together from boxes, or a record of why that cannot be done."""
    described = f"a {dtype} tensor of {list(shape)} in {len(chunks)} pieces"
    if dtype not in ITEM_SIZES:
        return Opaque(
            "torch.Tensor", (shape,), note=f"not built: {described}: elements of this type are not read"
        )
    if not fills(shape, chunks):
        return Opaque("torch.Tensor", (shape,), note=f"not built: {described} that do not fill it exactly")
    return TensorRef(dtype, shape, math.prod(shape) * ITEM_SIZES[dtype], _chunks=chunks)


def fills(shape: tuple[int, ...], chunks: tuple[Chunk, ...]) -> bool:
    """Whether boxes cover a shape once and completely."""
    boxes = [chunk for chunk in chunks if math.prod(chunk.sizes)]
    if any(
        len(box.offsets) != len(shape)
        or len(box.sizes) != len(shape)
        or any(low + size > whole for low, size, whole in zip(box.offsets, box.sizes, shape, strict=True))
        for box in boxes
    ):
        return False
    if sum(math.prod(box.sizes) for box in boxes) != math.prod(shape):
        return False
    cut = [axis for axis in range(len(shape)) if any(box.sizes[axis] != shape[axis] for box in boxes)]
    if len(cut) <= 1:  # the usual case: rows, dealt out to ranks
        edge = 0
        for box in sorted(boxes, key=lambda box: box.offsets[cut[0]]) if cut else boxes:
            if cut and box.offsets[cut[0]] != edge:
                return False
            edge += box.sizes[cut[0]] if cut else 0
        return True
    return len(boxes) <= MAX_SCATTERED and not any(
        _overlap(boxes[i], boxes[k], cut) for i in range(len(boxes)) for k in range(i)
    )


def _overlap(one: Chunk, other: Chunk, axes: list[int]) -> bool:
    return all(
        one.offsets[axis] < other.offsets[axis] + other.sizes[axis]
        and other.offsets[axis] < one.offsets[axis] + one.sizes[axis]
        for axis in axes
    )


def open_piece(chunk: Chunk, dtype: str) -> TensorRef:
    """The tensor in one piece, checked against what was said about it.

    Raises:
        CorruptCheckpoint: it is another tensor than the metadata says.
    """
    record = chunk.record
    if chunk.is_zip:
        tree, _ = read_torch_zip(record.source, record.offset, record.nbytes, f"{shown(record.name)}, ")
    else:
        tree = TensorRef(
            dtype,
            chunk.sizes,
            record.nbytes,
            0,
            row_major(chunk.sizes),
            Storage(dtype, record.nbytes, record),
        )
    if not isinstance(tree, TensorRef) or (tree.dtype, tree.shape) != (dtype, chunk.sizes) or tree._chunks:
        found = f"{tree.dtype} {list(tree.shape)}" if isinstance(tree, TensorRef) else type(tree).__name__
        raise CorruptCheckpoint(
            f"{record.source.path}: the piece {shown(record.name)} is {found}, its metadata says {dtype} "
            f"{list(chunk.sizes)}; save the checkpoint again"
        )
    return tree
