"""ConvNeXts of other libraries -> timm's names."""

from __future__ import annotations

import re

from dse_monitor.checkpoints.families.network import POOLED_NORM
from dse_monitor.checkpoints.recognition.translations.pieces import Pieces, renamed, reshaped


def dinov3(pieces: Pieces) -> Pieces:
    """DINOv3's own ConvNeXt keeps its last norm a second time, in a list with one place per stage."""
    return original({name: piece for name, piece in pieces.items() if not name.startswith("norms.")})


def original(pieces: Pieces) -> Pieces:
    """The ConvNeXt authors' names, also VICRegL's."""
    block = r"stages\.(\d+)\.(\d+)\."
    pieces = renamed(
        pieces,
        [
            (r"norm\.(.+)", rf"{POOLED_NORM}.\1"),
            (r"downsample_layers\.0\.(.+)", r"stem.\1"),
            (r"downsample_layers\.(\d+)\.(.+)", r"stages.\1.downsample.\2"),
            (rf"{block}dwconv\.(.+)", r"stages.\1.blocks.\2.conv_dw.\3"),
            (rf"{block}pwconv([12])\.(.+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
            (rf"{block}grn\.gamma", r"stages.\1.blocks.\2.mlp.grn.weight"),
            (rf"{block}grn\.beta", r"stages.\1.blocks.\2.mlp.grn.bias"),
            (rf"{block}(.+)", r"stages.\1.blocks.\2.\3"),
        ],
    )
    return {
        name: reshaped(piece, piece.shape[-1:]) if ".grn." in name else piece
        for name, piece in pieces.items()
    }


def huggingface(pieces: Pieces) -> Pieces:
    """ConvNeXt and ConvNeXt V2 of Hugging Face transformers; their norm after pooling is dropped."""
    block = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
    return original(
        renamed(
            pieces,
            [
                (r"layernorm\.(.+)", ""),
                (r"embeddings\.patch_embeddings\.(.+)", r"downsample_layers.0.0.\1"),
                (r"embeddings\.layernorm\.(.+)", r"downsample_layers.0.1.\1"),
                (r"encoder\.stages\.(\d+)\.downsampling_layer\.(.+)", r"downsample_layers.\1.\2"),
                (rf"{block}layernorm\.(.+)", r"stages.\1.\2.norm.\3"),
                (rf"{block}layer_scale_parameter", r"stages.\1.\2.gamma"),
                (rf"{block}grn\.weight", r"stages.\1.\2.grn.gamma"),
                (rf"{block}grn\.bias", r"stages.\1.\2.grn.beta"),
                (rf"{block}(.+)", r"stages.\1.\2.\3"),
            ],
        )
    )


def huggingface_dinov3(pieces: Pieces) -> Pieces:
    """DINOv3's ConvNeXt of Hugging Face transformers, as saved and in memory."""
    block = r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\."
    return original(
        renamed(
            pieces,
            [
                (r"layer_norm\.(.+)", r"norm.\1"),
                (r"(?:model\.)?stages\.(\d+)\.downsample_layers\.(.+)", r"downsample_layers.\1.\2"),
                (rf"{block}depthwise_conv\.(.+)", r"stages.\1.\2.dwconv.\3"),
                (rf"{block}pointwise_conv([12])\.(.+)", r"stages.\1.\2.pwconv\3.\4"),
                (rf"{block}layer_norm\.(.+)", r"stages.\1.\2.norm.\3"),
                (rf"{block}(.+)", r"stages.\1.\2.\3"),
            ],
        )
    )


def torchvision(pieces: Pieces) -> Pieces:
    """Stages are the odd ``features``, the layers between them the even ones, the stem the first."""

    def stage(match: re.Match[str]) -> str:
        number, rest = int(match[1]), match[2]
        if number == 0:
            return f"stem.{rest}"
        if number % 2 == 0:
            return f"stages.{number // 2}.downsample.{rest}"
        names = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2"}
        rest = re.sub(r"block\.\d", lambda m: names.get(m[0], m[0]), rest).replace("layer_scale", "gamma")
        return f"stages.{number // 2}.blocks.{rest}"

    out = {re.sub(r"^features\.(\d+)\.(.+)$", stage, name): piece for name, piece in pieces.items()}
    return {
        name: reshaped(piece, piece.shape[:1]) if name.endswith(".gamma") else piece
        for name, piece in out.items()
    }
