"""ResNets of other libraries -> timm's names."""

from __future__ import annotations

import re

from dse_monitor.checkpoints.recognition.translations.pieces import Pieces


def sequential(pieces: Pieces) -> Pieces:
    """``nn.Sequential(*resnet.children())``: children by their position (BYOL-PyTorch, lightly)."""
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    return {
        ".".join([children.get(first, first), *rest]): piece
        for name, piece in pieces.items()
        for first, *rest in [name.split(".")]
    }


def huggingface(pieces: Pieces) -> Pieces:
    """ResNet of Hugging Face transformers: convolutions and their norms under one name each, counted."""
    norms = {"convolution": "conv", "normalization": "bn"}

    def layer(match: re.Match[str]) -> str:
        stage, block, place, kind, rest = match.groups()
        return f"layer{int(stage) + 1}.{block}.{norms[kind]}{int(place) + 1}.{rest}"

    def shortcut(match: re.Match[str]) -> str:
        stage, block, kind, rest = match.groups()
        return f"layer{int(stage) + 1}.{block}.downsample.{list(norms).index(kind)}.{rest}"

    block = r"^encoder\.stages\.(\d+)\.layers\.(\d+)\."
    kind = r"(convolution|normalization)\.(.+)$"
    out = {}
    for name, piece in pieces.items():
        name = re.sub(rf"{block}layer\.(\d+)\.{kind}", layer, name)
        name = re.sub(rf"{block}shortcut\.{kind}", shortcut, name)
        out[re.sub(rf"^embedder\.embedder\.{kind}", lambda m: f"{norms[m[1]]}1.{m[2]}", name)] = piece
    return out
