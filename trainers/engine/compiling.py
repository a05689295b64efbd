"""torch.compile on the blocks of the timm networks inside a method."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

# Kinds of blocks times crop sizes, for student and teacher: about 25 in a Swin of four stages. Beyond the
# limit, 8 by default, the rest would run uncompiled.
GRAPHS = 64


def compile_blocks(module: nn.Module) -> None:
    """Compile every transformer block and convolutional stage in place; names and state stay the same.

    Blocks rather than whole networks: equal blocks compile once, and methods call parts of a network on their
    own.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, GRAPHS)
    for child in list(module.modules()):
        if isinstance(child, VisionTransformer):
            stages = child.blocks
        elif isinstance(child, SwinTransformer):
            stages = [block for layer in child.layers for block in layer.blocks]  # pyright: ignore
        elif hasattr(child, "feature_info") and hasattr(child, "forward_features"):
            names = [info["module"] for info in child.feature_info]  # pyright: ignore
            try:
                stages = [child.get_submodule(name) for name in names]
            except AttributeError:  # names of outputs rather than of modules
                stages = list(child.children())
            if getattr(child, "grad_checkpointing", False):  # timm then calls what the stages are made of
                stages = [block for stage in stages for block in (list(stage.children()) or [stage])]
        else:
            continue
        # Windows cut from a grid of unknown size keep the compiler's algebra busy for minutes, then for ever.
        dynamic = False if isinstance(child, SwinTransformer) else None
        for stage in stages:
            _share_drop_path(stage, next(child.parameters()).device)
            stage.compile(dynamic=dynamic)


def _share_drop_path(block: nn.Module, device: torch.device) -> None:
    """Let blocks that differ in nothing but their rate of stochastic depth share one graph."""
    for parent in list(block.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DropPath) and child.drop_prob:
                setattr(parent, name, _DropPath(child).to(device))


class _DropPath(nn.Module):
    """timm's DropPath with the rate in a tensor: a number in Python would be compiled in."""

    keep: Tensor

    def __init__(self, original: DropPath) -> None:
        super().__init__()
        keep = 1 - original.drop_prob
        self.scale = original.scale_by_keep and keep > 0
        self.register_buffer("keep", torch.tensor(keep), persistent=False)
        self.train(original.training)

    def forward(self, x: Tensor) -> Tensor:
        """Zero the branch x [B, ...] of some images, scale it up for the others."""
        if not self.training:
            return x
        kept = torch.bernoulli(self.keep.expand(len(x), *[1] * (x.dim() - 1))).to(x.dtype)
        return x * (kept / self.keep.to(x.dtype) if self.scale else kept)
