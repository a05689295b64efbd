"""DINOv3's ViTs of other libraries -> timm's names."""

from __future__ import annotations

from dse_monitor.checkpoints.recognition.translations.pieces import (
    Pieces,
    first_axis,
    joined_qkv,
    renamed,
    rows,
)


def original(pieces: Pieces) -> Pieces:
    """DINOv3's own names. timm keeps the thirds of qkv.bias apart; the keys' counts only where no mask is."""
    masked = any(name.endswith(".bias_mask") for name in pieces)
    pieces = renamed(
        pieces,
        [
            (r".+\.bias_mask", ""),
            (r"storage_tokens", "reg_token"),
            (r"rope_embed\.periods", "rope.periods"),
            (r"(blocks\.\d+\.)ls([12])\.gamma", r"\1gamma_\2"),
            (r"(blocks\.\d+\.mlp\.)w1\.(.+)", r"\1fc1_g.\2"),
            (r"(blocks\.\d+\.mlp\.)w2\.(.+)", r"\1fc1_x.\2"),
            (r"(blocks\.\d+\.mlp\.)w3\.(.+)", r"\1fc2.\2"),
        ],
    )
    out: Pieces = {}
    for name, piece in pieces.items():
        if name.endswith(".attn.qkv.bias"):
            block, width = name.removesuffix("qkv.bias"), first_axis(piece) // 3
            out[f"{block}q_bias"] = rows(piece, 0, width)
            out[f"{block}v_bias"] = rows(piece, 2 * width, 3 * width)
            if not masked:
                out[f"{block}k_bias"] = rows(piece, width, 2 * width)
        else:
            out[name] = piece
    return out


def huggingface(pieces: Pieces) -> Pieces:
    """DINOv3 of Hugging Face transformers, with and without gates, as saved and in memory."""
    gated = any(".mlp.gate_proj." in name for name in pieces)
    pieces = {
        name: piece for name, piece in pieces.items() if 0 not in piece.shape
    }  # no registers: [1, 0, D]
    block = r"(?:model\.)?layer\.(\d+)\."
    joined = joined_qkv(
        renamed(
            pieces,
            [
                (r"embeddings\.mask_token", ""),
                (r"embeddings\.cls_token", "cls_token"),
                (r"embeddings\.register_tokens", "reg_token"),
                (r"embeddings\.patch_embeddings\.(.+)", r"patch_embed.proj.\1"),
                (rf"{block}attention\.([qv])_proj\.bias", r"blocks.\1.attn.\2_bias"),
                (rf"{block}attention\.([qkv])_proj\.(.+)", r"blocks.\1.attn.\2.\3"),
                (rf"{block}attention\.o_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
                (rf"{block}layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
                (rf"{block}mlp\.gate_proj\.(.+)", r"blocks.\1.mlp.fc1_g.\2"),
                (rf"{block}mlp\.up_proj\.(.+)", rf"blocks.\1.mlp.{'fc1_x' if gated else 'fc1'}.\2"),
                (rf"{block}mlp\.down_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
                (rf"{block}(.+)", r"blocks.\1.\2"),
            ],
        )
    )
    return joined
