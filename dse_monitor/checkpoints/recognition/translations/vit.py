"""ViTs of other libraries -> timm's names."""

from __future__ import annotations

import math

from dse_monitor.checkpoints.families.network import NotThisNetwork
from dse_monitor.checkpoints.recognition.translations.pieces import (
    Pieces,
    first_axis,
    joined_qkv,
    renamed,
    reshaped,
    stacked,
)


def _gated(pieces: Pieces) -> bool:
    """Whether the feed-forward part has a gate, as a layer of its own or packed into the first one."""
    first, second = (pieces.get(f"blocks.0.mlp.{layer}.weight") for layer in ("fc1", "fc2"))
    if first is None or second is None or not first.shape or len(second.shape) < 2:
        return "blocks.0.mlp.fc1_g.weight" in pieces
    return first.shape[0] == 2 * second.shape[1] or "blocks.0.mlp.fc1_g.weight" in pieces


def _positions_of_patches_alone(pieces: Pieces) -> bool:
    """Whether there is a class token whose position is not in the table of positions."""
    position = pieces.get("pos_embed")
    length = position.shape[1] if position is not None and len(position.shape) == 3 else 0
    return "cls_token" in pieces and length > 0 and math.isqrt(length) ** 2 == length


def timm(pieces: Pieces) -> Pieces:
    """Plain ViT, DeiT, DINOv2 and their like: registers, layer scale and gates under one set of names."""
    if "blocks.0.attn.q_bias" in pieces and _gated(pieces):
        raise NotThisNetwork("it may be EVA-02, which adds rotary positions that its tensors do not show")
    if "blocks.0.gamma_1" in pieces and "norm_pre.weight" in pieces:
        raise NotThisNetwork("it may be a Perception Encoder, whose rotary positions its tensors do not show")
    if "blocks.0.gamma_1" in pieces and _positions_of_patches_alone(pieces):
        raise NotThisNetwork(
            "it may be one of timm's vision transformers with rotary positions beside the absolute ones "
            "(vit_..._rope_ape_...), which its tensors do not show"
        )
    pieces = renamed(
        pieces,
        [
            (
                r"blocks\.\d+\.(\d+)\.(.+)",
                r"blocks.\1.\2",
            ),  # DINOv2's chunks of blocks keep the block's own number
            (r"(register_tokens|storage_tokens)", "reg_token"),
            (r"dist_token", "reg_token"),  # DeiT's distillation token is one more prefix token
        ],
    )
    pieces = renamed(
        pieces,
        [
            (r"(blocks\.\d+\.)gamma_([12])", r"\1ls\2.gamma"),
            (r"(blocks\.\d+\.mlp\.)w12\.(.+)", r"\1fc1.\2"),
            (r"(blocks\.\d+\.mlp\.)w3\.(.+)", r"\1fc2.\2"),
        ],
    )
    out = dict(pieces)
    for name, piece in pieces.items():  # BEiT and EVA keep the biases of query and value apart
        if name.endswith(".attn.q_bias"):
            block = name.removesuffix(".q_bias")
            value = out.pop(f"{block}.v_bias", None)
            out.pop(name)
            out.pop(f"{block}.k_bias", None)
            out[f"{block}.qkv.bias"] = stacked([piece, None, value], first_axis(piece))
    return out


def clip(pieces: Pieces) -> Pieces:
    """The image tower of OpenAI's CLIP and of open_clip; what follows its last norm is left out."""
    block = r"transformer\.resblocks\.(\d+)\."
    out = renamed(
        pieces,
        [
            (r"proj", ""),
            (r"class_embedding", "cls_token"),
            (r"positional_embedding", "pos_embed"),
            (r"conv1\.(.+)", r"patch_embed.proj.\1"),
            (r"ln_pre\.(.+)", r"norm_pre.\1"),
            (r"ln_post\.(.+)", r"norm.\1"),
            (rf"{block}ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
            (rf"{block}ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
            (rf"{block}attn\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
            (rf"{block}attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
            (rf"{block}mlp\.c_fc\.(.+)", r"blocks.\1.mlp.fc1.\2"),
            (rf"{block}mlp\.c_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        ],
    )
    for name, axes in (("cls_token", 1), ("pos_embed", 2)):
        if name in out:
            shape = out[name].shape
            if len(shape) != axes:
                raise NotThisNetwork(f"{out[name].sources[0]} is {list(shape)}, of {axes} axes in CLIP")
            out[name] = reshaped(out[name], (*(1 for _ in range(3 - axes)), *shape))
    return out


def torchvision(pieces: Pieces) -> Pieces:
    """Torchvision's names of old and new files (``mlp.0`` and ``mlp.linear_1``)."""
    return renamed(
        pieces,
        [
            (r"class_token", "cls_token"),
            (r"conv_proj\.(.+)", r"patch_embed.proj.\1"),
            (r"encoder\.pos_embedding", "pos_embed"),
            (r"encoder\.ln\.(.+)", r"norm.\1"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
            (
                r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(weight|bias)",
                r"blocks.\1.attn.qkv.\2",
            ),
            (
                r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.+)",
                r"blocks.\1.attn.proj.\2",
            ),
            (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        ],
    )


def huggingface(pieces: Pieces) -> Pieces:
    """ViT, ViT-MAE, DINOv2 and DINOv2 with registers of Hugging Face transformers.

    Version 5 names blocks otherwise in memory (``layers.0.attention.q_proj``) than in the files it saves.
    """
    block = r"(?:encoder\.layer|layers)\.(\d+)\."
    return joined_qkv(
        renamed(
            pieces,
            [
                (r"embeddings\.mask_token", ""),
                (r"embeddings\.cls_token", "cls_token"),
                (r"embeddings\.(?:register_tokens|distillation_token)", "reg_token"),
                (r"embeddings\.position_embeddings", "pos_embed"),
                (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
                (r"layernorm\.(.+)", r"norm.\1"),
                (rf"{block}attention\.attention\.(q|k|v)(?:uery|ey|alue)\.(.+)", r"blocks.\1.attn.\2.\3"),
                (rf"{block}attention\.(q|k|v)_proj\.(.+)", r"blocks.\1.attn.\2.\3"),
                (rf"{block}attention\.(?:output\.dense|o_proj)\.(.+)", r"blocks.\1.attn.proj.\2"),
                (rf"{block}intermediate\.dense\.(.+)", r"blocks.\1.mlp.fc1.\2"),
                (rf"{block}output\.dense\.(.+)", r"blocks.\1.mlp.fc2.\2"),
                (rf"{block}layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
                (rf"{block}layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
                (rf"{block}layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
                (rf"{block}mlp\.weights_in\.(.+)", r"blocks.\1.mlp.fc1.\2"),
                (rf"{block}mlp\.gate_proj\.(.+)", r"blocks.\1.mlp.fc1_g.\2"),
                (rf"{block}mlp\.up_proj\.(.+)", r"blocks.\1.mlp.fc1_x.\2"),
                (rf"{block}mlp\.down_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
                (rf"{block}mlp\.weights_out\.(.+)", r"blocks.\1.mlp.fc2.\2"),
                (rf"{block}(.+)", r"blocks.\1.\2"),
            ],
        )
    )


def mmpretrain(pieces: Pieces) -> Pieces:
    """Mmpretrain's names, and those of its earlier releases (``ln1`` and ``norm1``)."""
    block = r"layers\.(\d+)\."
    return renamed(
        pieces,
        [
            (r"patch_embed\.projection\.(.+)", r"patch_embed.proj.\1"),
            (r"(?:ln1|norm1)\.(.+)", r"norm.\1"),
            (r"pre_norm\.(.+)", r"norm_pre.\1"),
            (rf"{block}(?:ln|norm)([12])\.(.+)", r"blocks.\1.norm\2.\3"),
            (rf"{block}attn\.(.+)", r"blocks.\1.attn.\2"),
            (rf"{block}ffn\.layers\.0\.0\.(.+)", r"blocks.\1.mlp.fc1.\2"),
            (rf"{block}ffn\.layers\.1\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        ],
    )
