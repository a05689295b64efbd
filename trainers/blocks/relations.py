"""Mugs' relation to remembered images: a memory of past features, and a block that fuses neighbours."""

from __future__ import annotations

import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F


class Memory(nn.Module):
    """Past image features, from which neighbours are retrieved.

    As released, a push that does not wrap around moves the pointer by twice its length, so that every second
    chunk keeps its random start until a wrap changes the phase. The authors' third buffer is never read and
    left out.

    Attributes:
        searched: [M, D], compared with queries (``queue_q``).
        returned: [M, D], what a match returns (``queue_k``).
        pointer: int64 [1].
    """

    searched: Tensor
    returned: Tensor
    pointer: Tensor

    def __init__(self, width: int, length: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.register_buffer("searched", torch.randn(length, width))
        self.register_buffer("returned", torch.randn(length, width))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def nearest(self, queries: Tensor) -> Tensor:
        """Indices of the most similar entries by cosine: queries [B, D] -> int64 [B, neighbours]."""
        with torch.autocast(queries.device.type, enabled=False):  # near ties would fall otherwise
            similarity = F.normalize(queries.float(), dim=-1) @ F.normalize(self.searched, dim=-1).T
        return similarity.topk(self.neighbours, dim=-1).indices

    @torch.no_grad()
    def push(self, features: Tensor, weak: Tensor | None = None) -> None:
        """Insert features [n, D] of all processes (gather first); with ``weak`` bool [n] only those it marks.

        Raises:
            ValueError: more features than the memory is long.
        """
        features = features.float() if weak is None else features.float()[weak]
        length, count, start = len(self.searched), len(features), int(self.pointer)
        if count > length:
            raise ValueError(f"{count} features do not fit a memory of {length}: raise memory_length")
        if count == 0:
            return
        where = torch.arange(start, start + count, device=features.device) % length
        # new tensors: the backward of this step may still hold the old ones
        self.searched = self.searched.index_copy(0, where, features)
        self.returned = self.returned.index_copy(0, where, features)
        wraps = start + count > length
        self.pointer = torch.full_like(self.pointer, (start + count * (1 if wraps else 2)) % length)


class Relation(nn.Sequential):
    """One transformer block over a feature and its remembered neighbours (``relation_blocks``).

    Args:
        width: D.
        heads: of its attention.
        mlp_ratio: hidden width of its feed-forward part, over D.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=LayerNorm))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, memory: Memory) -> Tensor:
        """Features [B, D] -> the same, related to their neighbours in the memory [B, D]."""
        neighbours = memory.returned[memory.nearest(query)].to(query.dtype)
        return super().forward(torch.cat([query[:, None], neighbours], 1))[:, 0]
