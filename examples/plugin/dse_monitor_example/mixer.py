"""A network that timm does not have: patches, then blocks that mix across tokens and within them.

Shapes: B images, N tokens per image, D feature width, H hidden width, p side of a patch in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from dse_monitor.checkpoints.families import Family
from dse_monitor.checkpoints.families.network import Hints, Network, NotThisNetwork, count_blocks
from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.checkpoints.recognition.dialects import Dialect
from dse_monitor.facts import Fact
from dse_monitor.tokens import Tokens


class Block(nn.Module):
    """[B, N, D] -> [B, N, D]: one linear map across the tokens, then a small network within each."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.across = nn.Linear(tokens, tokens)
        self.within = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Two residual steps."""
        x = x + self.across(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(x)


class Mixer(nn.Module):
    """The network of our training code. Images [B, 3, h, w] -> class scores [B, classes]."""

    def __init__(self, side: int, patch: int, width: int, depth: int, hidden: int, classes: int = 0) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.mixers = nn.ModuleList(Block(side * side, width, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, side * p, side * p] -> dense tokens [B, N, D] after the last norm, row by row."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        for mixer in self.mixers:
            x = mixer(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the mean token."""
        return self.head(self.tokens(images).mean(1))


def _tokens(network: Any, images: Tensor, layer: int | None) -> Tokens:
    assert layer is None  # `Network.layers` is 0: nobody can ask for another
    return Tokens(network.tokens(images))


def recognise(shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network of these tensors: every size is read off a shape.

    Raises:
        NotThisNetwork: not a Mixer.
    """
    embed, across = shapes.get("embed.weight", ()), shapes.get("mixers.0.across.weight", ())
    first = shapes.get("mixers.0.within.1.weight", ())
    if len(embed) != 4 or embed[1] != 3 or embed[2] != embed[3]:
        raise NotThisNetwork(f"embed.weight is {list(embed)}, not [D, 3, p, p]")
    if len(across) != 2 or len(first) != 2:
        raise NotThisNetwork("its first block lacks mixers.0.across.weight or mixers.0.within.1.weight")
    side = math.isqrt(across[0])
    if side * side != across[0]:
        raise NotThisNetwork(f"it mixes {across[0]} tokens, which form no square")
    width, patch, depth = embed[0], embed[2], count_blocks(shapes, "mixers.")
    return Network(
        family="example-mixer",
        description=f"example mixer {width}x{depth}, patch {patch}",
        build=partial(Mixer, side, patch, width, depth, hidden=first[0]),
        tokens=_tokens,
        grid=(side, side),
        width=width,
        image_size=(side * patch, side * patch),
        facts=(Fact("activation", "GELU", "the only one of this training code"),),
    )


DIALECT = Dialect(
    name="example mixer",
    family="example-mixer",
    anchor="embed.weight",
    needs="mixers.0.across.weight",
)
FAMILY = Family(recognise, dialects=(DIALECT,))
