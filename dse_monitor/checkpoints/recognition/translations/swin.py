"""Swin transformers of other libraries -> timm's names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dse_monitor.checkpoints.families.network import Piece
from dse_monitor.checkpoints.recognition.translations.pieces import Pieces, joined_qkv, renamed

if TYPE_CHECKING:
    from torch import Tensor


_DROPPED_BUFFERS = (r"(?:.+\.)?(?:relative_position_index|relative_coords_table|attn_mask)", "")


def timm(pieces: Pieces) -> Pieces:
    """Timm's own names; buffers that every build makes again are dropped."""
    return renamed(pieces, [_DROPPED_BUFFERS])


def official(pieces: Pieces) -> Pieces:
    """The Swin authors and EsViT end a stage with its merging layer; in timm it begins the next one."""
    shifted = {
        re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name): piece
        for name, piece in pieces.items()
    }
    return timm(shifted)


def torchvision(pieces: Pieces) -> Pieces:
    """Stages are the odd ``features``, merging layers the even ones."""

    def stage(match: re.Match[str]) -> str:
        number, rest = int(match[1]), match[2]
        if number % 2 == 0:
            return f"layers.{number // 2}.downsample.{rest}"
        rest = re.sub(r"^(\d+)\.mlp\.0\.", r"\1.mlp.fc1.", re.sub(r"^(\d+)\.mlp\.3\.", r"\1.mlp.fc2.", rest))
        return f"layers.{number // 2}.blocks.{rest}"

    pieces = renamed(
        pieces,
        [
            _DROPPED_BUFFERS,
            (r"features\.0\.0\.(.+)", r"patch_embed.proj.\1"),
            (r"features\.0\.2\.(.+)", r"patch_embed.norm.\1"),
        ],
    )
    return {re.sub(r"^features\.(\d+)\.(.+)$", stage, name): piece for name, piece in pieces.items()}


def mmpretrain(pieces: Pieces) -> Pieces:
    """Swin as mmpretrain names it; its merging unfolds 2x2 neighbours channel by channel."""
    block = r"stages\.(\d+)\.blocks\.(\d+)\."
    pieces = renamed(
        pieces,
        [
            _DROPPED_BUFFERS,
            (r"patch_embed\.projection\.(.+)", r"patch_embed.proj.\1"),
            (r"norm3\.(.+)", r"norm.\1"),
            (r"stages\.(\d+)\.downsample\.(.+)", r"layers.\1.downsample.\2"),
            (rf"{block}attn\.w_msa\.(.+)", r"layers.\1.blocks.\2.attn.\3"),
            (rf"{block}ffn\.layers\.0\.0\.(.+)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
            (rf"{block}ffn\.layers\.1\.(.+)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
            (rf"{block}(.+)", r"layers.\1.blocks.\2.\3"),
        ],
    )
    for name, piece in pieces.items():
        if ".downsample.reduction.weight" in name or ".downsample.norm." in name:
            pieces[name] = Piece(piece.sources, piece.shape, lambda tensors: _neighbour_first(tensors[0]))
    return official(pieces)


def _neighbour_first(tensor: Tensor) -> Tensor:
    """[..., 4C] ordered (channel, row, column) -> (column, row, channel), the order of Swin's merging."""
    channels = tensor.shape[-1] // 4
    split = tensor.reshape(-1, channels, 2, 2)
    return split.permute(0, 3, 2, 1).reshape(tensor.shape).contiguous()


def _of_the_last_stage(pieces: Pieces) -> list[tuple[str, str]]:
    """A backbone norms each stage by itself and leaves the norm of the whole aside."""
    normed = sorted(name for name in pieces if name.startswith("hidden_states_norms.stage"))
    if not normed:
        return []
    last = normed[-1].rsplit(".", 1)[0]
    return [
        (r"(?:swin\.)?layernorm\..+", ""),
        (rf"{re.escape(last)}\.(.+)", r"norm.\1"),
        (r"hidden_states_norms\..+", ""),
    ]


def huggingface(pieces: Pieces) -> Pieces:
    """Swin of Hugging Face transformers; version 5 has other names in memory than in its files."""
    block = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
    return official(
        joined_qkv(
            renamed(
                pieces,
                [
                    _DROPPED_BUFFERS,
                    (r"embeddings\.mask_token", ""),
                    (r"embeddings\.position_embeddings", "absolute_pos_embed"),
                    (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
                    (r"embeddings\.norm\.(.+)", r"patch_embed.norm.\1"),
                    *_of_the_last_stage(pieces),
                    (r"layernorm\.(.+)", r"norm.\1"),
                    (
                        rf"{block}attention\.(?:self\.)?(q|k|v)(?:uery|ey|alue|_proj)\.(.+)",
                        r"layers.\1.blocks.\2.attn.\3.\4",
                    ),
                    (
                        rf"{block}attention\.(?:output\.dense|o_proj)\.(.+)",
                        r"layers.\1.blocks.\2.attn.proj.\3",
                    ),
                    (
                        rf"{block}attention\.(?:self|relative_position_bias)\.(.+)",
                        r"layers.\1.blocks.\2.attn.\3",
                    ),
                    (rf"{block}intermediate\.dense\.(.+)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
                    (rf"{block}output\.dense\.(.+)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
                    (rf"{block}layernorm_before\.(.+)", r"layers.\1.blocks.\2.norm1.\3"),
                    (rf"{block}layernorm_after\.(.+)", r"layers.\1.blocks.\2.norm2.\3"),
                    (rf"{block}(.+)", r"layers.\1.blocks.\2.\3"),
                    (r"encoder\.layers\.(\d+)\.downsample\.(.+)", r"layers.\1.downsample.\2"),
                ],
            )
        )
    )
