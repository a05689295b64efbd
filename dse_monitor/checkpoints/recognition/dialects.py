"""How different libraries name the tensors of the same network, and how each is turned into timm's names.

A dialect is recognised by two tensor names that every network of that dialect has; what stands before the
first of them is the prefix of the encoder. No torch is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.network import POOLED_NORM, NotThisNetwork, Piece
from dse_monitor.checkpoints.families.statedicts import Shape, StateDict

if TYPE_CHECKING:
    from torch import Tensor

    from dse_monitor.checkpoints.reading.contents import TensorRef

Pieces = dict[str, Piece]


@dataclass(frozen=True)
class Dialect:
    """One way of naming the tensors of one architecture family.

    Attributes:
        name: for messages.
        family: key of ``families.FAMILIES``.
        anchor: ends the name of a tensor every such network has; what precedes it is the prefix.
        needs: another tensor below the same prefix that must exist.
        translate: this dialect's pieces -> pieces under timm's names.
        norm_eps: LayerNorm epsilon this dialect's library uses, if it differs from the family's usual one.
        lacks: a tensor below the prefix that must not exist.
        details: how this dialect's library builds the network otherwise than timm; see `Hints.details`.
        model_types: ``model_type`` of the config.json files it is built for; empty if there is none.
        eps_fixed: whether its inner norms ignore ``layer_norm_eps`` of config.json.
    """

    name: str
    family: str
    anchor: str
    needs: str
    translate: Callable[[Pieces], Pieces] = lambda pieces: pieces
    norm_eps: float | None = None
    lacks: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    model_types: tuple[str, ...] = ()
    eps_fixed: bool = False


@dataclass(frozen=True)
class Found:
    """An encoder somewhere in the file: which state dict, below which prefix, in which dialect."""

    state: StateDict
    prefix: str
    dialect: Dialect

    @property
    def location(self) -> str:
        """``path/prefix`` without wrappers, as layouts are matched against."""
        return ".".join(self.state.path) + "/" + self.prefix

    @property
    def spelled(self) -> str:
        """``path/prefix`` as the file spells it."""
        return ".".join(self.state.path) + "/" + self.state.prefix_in_file(self.prefix, self.dialect.anchor)

    def shapes(self) -> dict[str, Shape]:
        """Shapes by the file's names below the prefix."""
        return self.state.below(self.prefix)

    def references(self) -> dict[str, TensorRef]:
        """The tensors by the file's names below the prefix."""
        cut = len(self.prefix)
        return {n[cut:]: ref for n, ref in self.state.tensors.items() if n.startswith(self.prefix)}

    def pieces(self) -> Pieces:
        """The tensors below the prefix under timm's names."""
        return self.dialect.translate({name: Piece((name,), shape) for name, shape in self.shapes().items()})


def find(states: list[StateDict], dialects: Sequence[Dialect] | None = None) -> Iterator[Found]:
    """Every encoder in the file that these dialects name (DIALECTS if None), in the file's order."""
    for state in states:
        for name in state.tensors:
            for dialect in DIALECTS if dialects is None else dialects:
                if name == dialect.anchor or name.endswith("." + dialect.anchor):
                    prefix = name[: len(name) - len(dialect.anchor)]
                    absent = not dialect.lacks or prefix + dialect.lacks not in state.tensors
                    if absent and prefix + dialect.needs in state.tensors:
                        yield Found(state, prefix, dialect)
                        break


def renamed(pieces: Mapping[str, Piece], rules: list[tuple[str, str]]) -> Pieces:
    """Names rewritten by the first regular expression that matches the whole name; the others stay."""
    out: Pieces = {}
    for name, piece in pieces.items():
        for pattern, replacement in rules:
            new, count = re.subn(f"^(?:{pattern})$", replacement, name)
            if count:
                name = new
                break
        if name:
            out[name] = piece
    return out


def _rows(piece: Piece, start: int, stop: int) -> Piece:
    """Rows start..stop of a tensor."""
    make = piece.make
    return Piece(
        piece.sources, (stop - start, *piece.shape[1:]), lambda tensors: make(tensors)[start:stop].clone()
    )


def _stacked(pieces: list[Piece | None], rows: int) -> Piece:
    """Tensors one above the other; None stands for `rows` zeros (a bias that is fixed at zero)."""
    given = [piece for piece in pieces if piece is not None]
    width = given[0].shape[1:]
    counts = [len(piece.sources) if piece is not None else 0 for piece in pieces]

    def make(tensors: list[Tensor]) -> Tensor:
        import torch

        parts: list[Tensor] = []
        taken = 0
        for piece, count in zip(pieces, counts, strict=True):
            if piece is None:
                parts.append(tensors[0].new_zeros((rows, *width)))
            else:
                parts.append(piece.make(tensors[taken : taken + count]))
            taken += count
        return torch.cat(parts)

    total = sum(rows if piece is None else piece.shape[0] for piece in pieces)
    return Piece(tuple(source for piece in given for source in piece.sources), (total, *width), make)


def _reshaped(piece: Piece, shape: Shape) -> Piece:
    make = piece.make
    return Piece(piece.sources, shape, lambda tensors: make(tensors).reshape(shape))


def _joined_qkv(pieces: Pieces) -> Pieces:
    """Separate query, key and value projections (``attn.q``, ``.k``, ``.v``) as one ``attn.qkv``.

    A missing bias among present ones is zero, as in BEiT and DINOv3, whose keys have none.
    """
    out = {name: piece for name, piece in pieces.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    blocks = {name.removesuffix(".attn.q.weight") for name in pieces if name.endswith(".attn.q.weight")}
    for block in blocks:
        for kind in ("weight", "bias"):
            parts = [pieces.get(f"{block}.attn.{part}.{kind}") for part in "qkv"]
            if any(part is not None for part in parts):
                rows = pieces[f"{block}.attn.q.weight"].shape[0]
                out[f"{block}.attn.qkv.{kind}"] = _stacked(parts, rows)
    return out


def _gated(pieces: Pieces) -> bool:
    """Whether the feed-forward part has a gate, as a layer of its own or packed into the first one."""
    first, second = (pieces.get(f"blocks.0.mlp.{layer}.weight") for layer in ("fc1", "fc2"))
    packed = first is not None and second is not None and first.shape[0] == 2 * second.shape[1]
    return packed or "blocks.0.mlp.fc1_g.weight" in pieces


def _timm_vit(pieces: Pieces) -> Pieces:
    """Plain ViT, DeiT, DINOv2 and their like: registers, layer scale and gates under one set of names."""
    if "blocks.0.attn.q_bias" in pieces and _gated(pieces):
        raise NotThisNetwork("it may be EVA-02, which adds rotary positions that its tensors do not show")
    if "blocks.0.gamma_1" in pieces and "norm_pre.weight" in pieces:
        raise NotThisNetwork("it may be a Perception Encoder, whose rotary positions its tensors do not show")
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
            out[f"{block}.qkv.bias"] = _stacked([piece, None, value], piece.shape[0])
    return out


def _torchvision_vit(pieces: Pieces) -> Pieces:
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


def _huggingface_vit(pieces: Pieces) -> Pieces:
    """ViT, ViT-MAE, DINOv2 and DINOv2 with registers of Hugging Face transformers.

    Version 5 names blocks otherwise in memory (``layers.0.attention.q_proj``) than in the files it saves.
    """
    block = r"(?:encoder\.layer|layers)\.(\d+)\."
    return _joined_qkv(
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


def _dinov3(pieces: Pieces) -> Pieces:
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
            block, width = name.removesuffix("qkv.bias"), piece.shape[0] // 3
            out[f"{block}q_bias"] = _rows(piece, 0, width)
            out[f"{block}v_bias"] = _rows(piece, 2 * width, 3 * width)
            if not masked:
                out[f"{block}k_bias"] = _rows(piece, width, 2 * width)
        else:
            out[name] = piece
    return out


def _huggingface_dinov3(pieces: Pieces) -> Pieces:
    gated = any(".mlp.gate_proj." in name for name in pieces)
    pieces = {
        name: piece for name, piece in pieces.items() if 0 not in piece.shape
    }  # no registers: [1, 0, D]
    block = r"(?:model\.)?layer\.(\d+)\."
    joined = _joined_qkv(
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


def _mmpretrain_vit(pieces: Pieces) -> Pieces:
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


def _sequential_resnet(pieces: Pieces) -> Pieces:
    """``nn.Sequential(*resnet.children())``: children by their position (BYOL-PyTorch, lightly)."""
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    return {
        ".".join([children.get(first, first), *rest]): piece
        for name, piece in pieces.items()
        for first, *rest in [name.split(".")]
    }


_DROPPED_BUFFERS = (r"(?:.+\.)?(?:relative_position_index|relative_coords_table|attn_mask)", "")


def _timm_swin(pieces: Pieces) -> Pieces:
    return renamed(pieces, [_DROPPED_BUFFERS])


def _official_swin(pieces: Pieces) -> Pieces:
    """The Swin authors and EsViT end a stage with its merging layer; in timm it begins the next one."""
    shifted = {
        re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name): piece
        for name, piece in pieces.items()
    }
    return _timm_swin(shifted)


def _torchvision_swin(pieces: Pieces) -> Pieces:
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


def _mmpretrain_swin(pieces: Pieces) -> Pieces:
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
    return _official_swin(pieces)


def _neighbour_first(tensor: Tensor) -> Tensor:
    """[..., 4C] ordered (channel, row, column) -> (column, row, channel), the order of Swin's merging."""
    channels = tensor.shape[-1] // 4
    split = tensor.reshape(-1, channels, 2, 2)
    return split.permute(0, 3, 2, 1).reshape(tensor.shape).contiguous()


def _huggingface_swin(pieces: Pieces) -> Pieces:
    """Swin of Hugging Face transformers; version 5 has other names in memory than in its files."""
    block = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
    return _official_swin(
        _joined_qkv(
            renamed(
                pieces,
                [
                    _DROPPED_BUFFERS,
                    (r"embeddings\.mask_token", ""),
                    (r"embeddings\.position_embeddings", "absolute_pos_embed"),
                    (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
                    (r"embeddings\.norm\.(.+)", r"patch_embed.norm.\1"),
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


def _huggingface_resnet(pieces: Pieces) -> Pieces:
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


def _dinov3_convnext(pieces: Pieces) -> Pieces:
    """DINOv3's own ConvNeXt keeps its last norm a second time, in a list with one place per stage."""
    return _original_convnext(
        {name: piece for name, piece in pieces.items() if not name.startswith("norms.")}
    )


def _original_convnext(pieces: Pieces) -> Pieces:
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
        name: _reshaped(piece, (piece.shape[-1],)) if ".grn." in name else piece
        for name, piece in pieces.items()
    }


def _huggingface_convnext(pieces: Pieces) -> Pieces:
    block = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
    return _original_convnext(
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


def _huggingface_dinov3_convnext(pieces: Pieces) -> Pieces:
    block = r"(?:model\.)?stages\.(\d+)\.layers\.(\d+)\."
    return _original_convnext(
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


def _torchvision_convnext(pieces: Pieces) -> Pieces:
    def stage(match: re.Match[str]) -> str:
        number, rest = int(match[1]), match[2]
        if number == 0:
            return f"stem.{rest}"
        if number % 2 == 0:
            return f"stages.{number // 2}.downsample.{rest}"
        names = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2"}
        rest = re.sub(r"block\.\d", lambda m: names[m[0]], rest).replace("layer_scale", "gamma")
        return f"stages.{number // 2}.blocks.{rest}"

    out = {re.sub(r"^features\.(\d+)\.(.+)$", stage, name): piece for name, piece in pieces.items()}
    return {
        name: _reshaped(piece, (piece.shape[0],)) if name.endswith(".gamma") else piece
        for name, piece in out.items()
    }


# What transformers builds from the same ViT blocks, with these values of config.json's model_type.
_VITS = ("vit", "vit_mae", "vit_msn", "deit", "ijepa")

# The first that fits decides; dialects that share an anchor differ in what else they need.
DIALECTS: tuple[Dialect, ...] = (
    Dialect("DINOv3", "dinov3", "patch_embed.proj.weight", "rope_embed.periods", _dinov3),
    Dialect("timm DINOv3", "dinov3", "patch_embed.proj.weight", "reg_token", lacks="pos_embed"),
    Dialect(
        "Hugging Face DINOv3",
        "dinov3",
        "embeddings.patch_embeddings.weight",
        "layer.0.attention.q_proj.weight",
        _huggingface_dinov3,
        model_types=("dinov3_vit",),
    ),
    Dialect(
        "Hugging Face DINOv3 (in memory)",
        "dinov3",
        "embeddings.patch_embeddings.weight",
        "model.layer.0.attention.q_proj.weight",
        _huggingface_dinov3,
        model_types=("dinov3_vit",),
    ),
    Dialect("timm ViT", "vit", "patch_embed.proj.weight", "blocks.0.norm1.weight", _timm_vit),
    Dialect(
        "ViT with a convolutional stem",
        "vit",
        "patch_embed.proj.12.weight",
        "blocks.0.norm1.weight",
        _timm_vit,
    ),
    Dialect("DINOv2 in chunks", "vit", "patch_embed.proj.weight", "blocks.0.0.norm1.weight", _timm_vit),
    Dialect("torchvision ViT", "vit", "conv_proj.weight", "encoder.pos_embedding", _torchvision_vit),
    Dialect(
        "Hugging Face DINOv2",
        "vit",
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layer.0.norm1.weight",
        _huggingface_vit,
        model_types=("dinov2", "dinov2_with_registers"),
    ),
    Dialect(
        "Hugging Face ViT",
        "vit",
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layer.0.layernorm_before.weight",
        _huggingface_vit,
        norm_eps=1e-12,  # transformers' default for ViT and ViT-MAE
        model_types=_VITS,
    ),
    Dialect(
        "Hugging Face ViT (in memory)",
        "vit",
        "embeddings.patch_embeddings.projection.weight",
        "layers.0.layernorm_before.weight",
        _huggingface_vit,
        norm_eps=1e-12,
        model_types=_VITS,
    ),
    Dialect(
        "Hugging Face Swin",
        "swin",
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layers.0.blocks.0.layernorm_before.weight",
        _huggingface_swin,
        details={"pad_first": True},
        model_types=("swin", "maskformer-swin", "donut-swin", "swinv2"),
    ),
    Dialect(
        "mmpretrain ViT", "vit", "patch_embed.projection.weight", "layers.0.attn.qkv.weight", _mmpretrain_vit
    ),
    Dialect(
        "official Swin",
        "swin",
        "patch_embed.proj.weight",
        "layers.0.downsample.reduction.weight",
        _official_swin,
    ),
    Dialect("timm Swin", "swin", "patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight", _timm_swin),
    Dialect(
        "torchvision Swin",
        "swin",
        "features.0.0.weight",
        "features.1.0.attn.qkv.weight",
        _torchvision_swin,
        details={"pad_first": True},
    ),
    Dialect(
        "mmpretrain Swin",
        "swin",
        "patch_embed.projection.weight",
        "stages.0.blocks.0.attn.w_msa.qkv.weight",
        _mmpretrain_swin,
        details={"pad_first": True},
    ),
    Dialect("timm ConvNeXt", "convnext", "stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    Dialect(
        "DINOv3 ConvNeXt",
        "convnext",
        "downsample_layers.0.0.weight",
        "norms.3.weight",
        _dinov3_convnext,
        details={"norm_before_pooling": True},
    ),
    Dialect(
        "original ConvNeXt",
        "convnext",
        "downsample_layers.0.0.weight",
        "stages.0.0.dwconv.weight",
        _original_convnext,
    ),
    Dialect(
        "Hugging Face ConvNeXt",
        "convnext",
        "embeddings.patch_embeddings.weight",
        "encoder.stages.0.layers.0.dwconv.weight",
        _huggingface_convnext,
        model_types=("convnext", "convnextv2"),
        eps_fixed=True,
    ),
    Dialect(
        "Hugging Face DINOv3 ConvNeXt (in memory)",
        "convnext",
        "model.stages.0.downsample_layers.0.weight",
        "layer_norm.weight",
        _huggingface_dinov3_convnext,
        details={"norm_before_pooling": True},
        model_types=("dinov3_convnext",),
    ),
    Dialect(
        "Hugging Face DINOv3 ConvNeXt",
        "convnext",
        "stages.0.downsample_layers.0.weight",
        "stages.0.layers.0.depthwise_conv.weight",
        _huggingface_dinov3_convnext,
        details={"norm_before_pooling": True},
        model_types=("dinov3_convnext",),
    ),
    Dialect(
        "torchvision ConvNeXt",
        "convnext",
        "features.0.0.weight",
        "features.1.0.block.0.weight",
        _torchvision_convnext,
    ),
    Dialect("ResNet", "resnet", "conv1.weight", "layer1.0.conv1.weight"),
    Dialect("ResNet with a deep stem", "resnet", "conv1.0.weight", "layer1.0.conv1.weight"),
    Dialect(
        "Hugging Face ResNet",
        "resnet",
        "embedder.embedder.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
        _huggingface_resnet,
        model_types=("resnet",),
    ),
    Dialect("ResNet as a sequence", "resnet", "0.weight", "4.0.conv1.weight", _sequential_resnet),
)
