"""What the scripts of this folder train: a ViT so small that ten checkpoints take seconds on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

SAVES = 10  # checkpoints in each run


def folder() -> Path:
    """The folder that was named on the command line, made if it is not there."""
    if len(sys.argv) < 2:
        sys.exit(f"usage: python {Path(sys.argv[0]).name} FOLDER")
    path = Path(sys.argv[1]).resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def vit() -> VisionTransformer:
    """A ViT for images of 32 px: 16 patches, 192 dimensions, 3 heads, 2 blocks."""
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=0)


def images(count: int = 4) -> torch.Tensor:
    """A batch of random images."""
    return torch.randn(count, 3, 32, 32)


def loss(features: torch.Tensor) -> torch.Tensor:
    """Something that a few steps make smaller; what it is does not matter here."""
    return (features**2).mean()


def optimizer(network: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW with a rate at which every step changes the features."""
    return torch.optim.AdamW(network.parameters(), lr=1e-3)


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One training step."""
    loss(network(images())).backward()
    optimizer.step()
    optimizer.zero_grad()


def saves(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[int]:
    """Train, and stop every other step for a checkpoint: yields 2, 4 and so on, the steps done."""
    for count in range(2, 2 * SAVES + 1, 2):
        step(network, optimizer)
        step(network, optimizer)
        yield count
