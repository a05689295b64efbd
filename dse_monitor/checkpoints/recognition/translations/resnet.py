"""ResNets of other libraries -> timm's names."""

from __future__ import annotations

import re

from dse_monitor.checkpoints.families.network import NotThisNetwork, Piece
from dse_monitor.checkpoints.recognition.translations.pieces import Pieces, renamed


def sequential(pieces: Pieces) -> Pieces:
    """``nn.Sequential(*resnet.children())``: children by their position (BYOL-PyTorch, lightly)."""
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    return {
        ".".join([children.get(first, first), *rest]): piece
        for name, piece in pieces.items()
        for first, *rest in [name.split(".")]
    }


def shortcuts(pieces: Pieces) -> Pieces:
    """Lightly's ``ResNetGenerator`` and relatives for small images: ``shortcut`` instead of ``downsample``.

    Their stem is a 3x3 convolution of stride one with padding one, and no pooling follows. Lightly's split
    batch norm keeps statistics [S * C] of S parts of a batch; it evaluates with their mean.
    """
    out = renamed(pieces, [(r"(layer\d+\.\d+\.)shortcut\.(.+)", r"\1downsample.\2")])
    stem = out["conv1.weight"].shape if "conv1.weight" in out else ()
    if len(stem) != 4 or stem[2:] != (3, 3):
        raise NotThisNetwork(f"conv1.weight is {list(stem)}; a 3x3 convolution was expected beside shortcuts")
    for name, piece in out.items():
        norm, dot, kind = name.rpartition(".")
        weight = out.get(f"{norm}.weight")
        if dot and kind in ("running_mean", "running_var") and weight is not None:
            if len(weight.shape) == len(piece.shape) == 1 and weight.shape != piece.shape:
                out[name] = _mean_of_parts(piece, weight.shape[0])
    return out


def _mean_of_parts(piece: Piece, channels: int) -> Piece:
    """[S * C] -> [C]: the mean over S parts."""
    if not channels or piece.shape[0] % channels:
        raise NotThisNetwork(f"batch norm statistics {list(piece.shape)} for {channels} channels")
    make = piece.make
    return Piece(piece.sources, (channels,), lambda tensors: make(tensors).view(-1, channels).mean(0))


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
