"""Projection heads: an MLP with every choice of the methods, DINO's prototype head, Mugs' contrast head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(
    widths: Sequence[int],
    *,
    norm: bool | type[nn.Module] = True,
    bias: bool = True,
    last_bias: bool = True,
    last_norm: str = "none",
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers with batch norm and activation between, numbered as in the authors' Sequentials.

    Args:
        widths: input, hidden ..., output width.
        norm: batch norm after every hidden layer, or another norm by its class (VICRegL's layer norm).
        bias: biases of the hidden layers.
        last_bias: bias of the last layer.
        last_norm: batch norm on the output: ``none``, ``plain`` (no affine parameters) or ``affine``.
        activation: module class between the layers.

    Returns:
        [B, widths[0]] -> [B, widths[-1]]. E.g. Barlow Twins: ``mlp((2048, 8192, 8192, 8192), bias=False,
        last_bias=False)`` has parameters 0, 1, 3, 4, 6; MoCo v3: the same with ``last_norm="plain"``.
    """
    if last_norm not in ("none", "plain", "affine"):
        raise ValueError(f"last_norm is 'none', 'plain' or 'affine', got {last_norm!r}")
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(fan_in, fan_out, bias=last_bias if last else bias))
        if last:
            break
        if norm:
            layers.append((nn.BatchNorm1d if norm is True else norm)(fan_out))
        layers.append(activation())
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)


class Prototypes(nn.Module):
    """Weight-normalised linear layer without bias: K unit directions ``weight_v`` scaled by ``weight_g``.

    torch's parametrisation API names these tensors differently from every published checkpoint, and the old
    hook is deprecated; hence this module. ``weight_g`` starts at 1 and stays there when ``trainable_scale``
    is false.

    Attributes:
        weight_g: [K, 1].
        weight_v: [K, D].
    """

    def __init__(self, width: int, prototypes: int, *, trainable_scale: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=trainable_scale)
        self.weight_v = nn.Parameter(nn.Linear(width, prototypes, bias=False).weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., K]."""
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class DINOHead(nn.Module):
    """MLP with GELU, L2 normalisation, prototypes: facebookresearch/dino vision_transformer.py:DINOHead.

    Used by DINO, EsViT, Mugs and (with a second ``last_layer``) iBOT. Parameters: ``mlp.{0,2,4}.*``,
    ``last_layer.weight_g`` [K, 1] and ``last_layer.weight_v`` [K, bottleneck].
    """

    def __init__(
        self,
        width: int,
        prototypes: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        self.mlp = mlp((width, hidden, hidden, bottleneck), norm=False, activation=nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(bottleneck, prototypes, trainable_scale=not norm_last_layer)

    def bottleneck(self, x: Tensor) -> Tensor:
        """[..., D] -> unit vectors [..., bottleneck]."""
        return F.normalize(self.mlp(x), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> prototype logits [..., K]."""
        return self.last_layer(self.bottleneck(x))


class ContrastHead(nn.Module):
    """Mugs: projector, and for the student a predictor on the normalised projection; unit outputs."""

    def __init__(self, width: int, hidden: int, projection: int, predictor_hidden: int | None) -> None:
        super().__init__()
        plain = {"norm": False, "bias": False, "last_bias": False, "activation": nn.GELU}
        self.projector = mlp((width, hidden, hidden, projection), **plain)
        self.predictor = (
            None if predictor_hidden is None else mlp((projection, predictor_hidden, projection), **plain)
        )
        for layer in self.projector:  # the predictor keeps torch's start: it is made after the authors' own
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, C]."""
        x = F.normalize(self.projector(x), dim=-1)
        return x if self.predictor is None else F.normalize(self.predictor(x), dim=-1)
