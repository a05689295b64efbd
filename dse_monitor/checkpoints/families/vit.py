"""Vision transformers of any width, depth and patch, from the shapes of their tensors.

Shapes: D width, p patch side, g patches per side, r register tokens, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families import Family, unseen
from dse_monitor.checkpoints.families.layers import BUFFERS, batch_norm, convolution, linear, norm
from dse_monitor.checkpoints.families.network import (
    Heads,
    Hints,
    Network,
    NotThisNetwork,
    Piece,
    count_blocks,
)
from dse_monitor.checkpoints.families.outputs import timm_tokens
from dse_monitor.checkpoints.families.positions import SINUSOID, not_stored
from dse_monitor.checkpoints.families.refusals import plain_blocks, plausible
from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.errors import AmbiguousArchitecture, FeatureError
from dse_monitor.facts import Fact

if TYPE_CHECKING:
    from torch import nn

NORM_EPS = 1e-6  # LayerNorm epsilon of timm, torchvision, DINO, MAE, MoCo v3 and I-JEPA vision transformers

# Heads of nearly every published vision transformer of these widths, timm 1.0's 259 models among them. Others
# exist (MoCo v3's and solo-learn's of width 384 have 12, mmpretrain's "small" of 768 has 8), so this only
# puts the likeliest first where somebody has to choose.
USUAL_HEADS = {
    192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12, 832: 13, 896: 14, 1024: 16, 1152: 16, 1280: 16,
    1408: 16, 1536: 24, 1664: 16
}  # fmt: skip
CONV_STEM = "patch_embed.proj.12.weight"  # last layer of MoCo v3's convolutional stem
CONV_STEM_PATCH = 16  # four convolutions of stride two
USUAL_HEAD_WIDTHS = (64, 32, 80, 72, 88, 96, 128)  # in order of how often they occur; used to list candidates


def recognise(shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network of these tensors (timm's names).

    Raises:
        NotThisNetwork: no vision transformer that can be built.
        AmbiguousArchitecture: heads or activation follow from nothing known.
        FeatureError: its positions are for other images than the user wants.
    """
    plausible(shapes)
    width, channels, patch = patch_embedding(shapes)
    depth = count_blocks(shapes, "blocks.")
    if not depth or "blocks.0.norm1.weight" not in shapes:
        raise NotThisNetwork("no transformer blocks named blocks.0.norm1, blocks.0.attn, ...")
    plain_blocks(shapes, width)  # before anybody is asked for heads
    class_token = "cls_token" in shapes
    registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
    notes: list[str] = []
    renamed: dict[str, Piece] = {}
    if "pos_embed" not in shapes:
        renamed["pos_embed"] = not_stored(width, patch, hints)
        shapes = {**shapes, "pos_embed": renamed["pos_embed"].shape}
        notes.append("The file holds no positions: a table of sinusoids is made, as its training code does.")
    mlp, mlp_words = feed_forward(shapes, width)
    heads = number_of_heads(shapes, width, hints)
    act = _activation(shapes, mlp, hints)
    eps = unseen.norm_epsilon(hints, NORM_EPS, "timm's, and that of nearly every vision transformer's code")
    grid, embeds_prefix, shape = _grid(shapes["pos_embed"], class_token, registers, patch, hints, renamed)
    has_final_norm = "norm.weight" in shapes
    if not has_final_norm:
        notes.append(
            "There is no norm after the last block (it stands after pooling): tokens are read without it."
        )
    common: dict[str, Any] = dict(
        img_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        in_chans=channels,
        embed_dim=width,
        depth=depth,
        num_heads=heads.count,
        class_token=class_token,
        no_embed_class=not embeds_prefix,
        reg_tokens=registers,
        global_pool="token" if class_token else "avg",
    )
    build = partial(_build, shapes, common, mlp, act.value, eps.value, has_final_norm)
    tensors = _tensors(shapes, common, mlp, has_final_norm)
    words = [
        f"vit {width}x{depth}",
        f"{heads.count} heads",
        f"patch {patch}{unseen.bands(channels)}",
        "convolutional stem" if CONV_STEM in shapes else "",
        mlp_words,
        f"{registers} registers" if registers else "",
        "" if class_token else "no class token",
        "" if act.value in ("gelu", "silu") else unseen.ACTIVATIONS[act.value],
    ]
    return Network(
        family="vit",
        description=", ".join(word for word in words if word),
        build=build,
        tensors=tensors,
        buffers=frozenset(name for name in tensors if name.endswith(BUFFERS)),
        tokens=timm_tokens,
        grid=grid,
        width=width,
        channels=channels,
        image_size=common["img_size"],
        layers=depth,
        heads=f"{heads.count} ({heads.source})",
        facts=(heads_fact(heads, width, hints), act.fact, eps.fact, *_attention_facts(hints), shape),
        renamed=renamed,
        notes=tuple(notes),
    )


def _attention_facts(hints: Hints) -> tuple[Fact, Fact]:
    """What attention does with positions and its products, where there is a table of positions."""
    positions, evidence = "absolute, none rotary", "few networks with a table of positions have both"
    if hints.details.get("positions") == SINUSOID:
        positions = "absolute, a table of sinusoids, none rotary"
    return (
        hints.fact("positions", positions, evidence),
        hints.fact("attention scale", "1 over the root of a head's width", "every published network"),
    )


def _activation(shapes: Mapping[str, Shape], mlp: FeedForward, hints: Hints) -> unseen.Unseen:
    """Of the feed-forward parts.

    Raises:
        AmbiguousArchitecture: nothing says which of two that are both common.
    """
    if mlp.kind != "mlp":  # configurations often go on naming GELU, which such networks do not use
        return unseen.Unseen(
            "silu", Fact("activation", "SiLU", "the gate of SwiGLU, which is in the tensors")
        )
    if "norm_pre.weight" in shapes and hints.say("activation") is None:
        raise AmbiguousArchitecture(
            "it has a norm before its first block, as CLIP's networks and their descendants have, of which "
            "some use quick-GELU and some rotary positions, neither to be seen in the tensors; nothing in or "
            "beside the file says which. Name the timm model, such as "
            "--arch vit_base_patch16_clip_quickgelu_224 (OpenAI's weights) or vit_base_patch16_clip_224"
        )
    return unseen.activation(hints, "gelu", "nearly every published vision transformer")


def patch_embedding(shapes: Mapping[str, Shape]) -> tuple[int, int, int]:
    """Width, channels and patch side, from ``patch_embed.proj.weight`` [D, C, p, p]."""
    if CONV_STEM in shapes:
        if len(shapes[CONV_STEM]) != 4:
            raise NotThisNetwork(f"{CONV_STEM} is {list(shapes[CONV_STEM])}, not [D, C, 1, 1]")
        first = shapes.get("patch_embed.proj.0.weight", ())
        if len(first) != 4:
            raise NotThisNetwork(f"patch_embed.proj.0.weight is {list(first)}, not [D, C, 3, 3]")
        return shapes[CONV_STEM][0], first[1], CONV_STEM_PATCH
    weight = shapes.get("patch_embed.proj.weight", ())
    if len(weight) != 4:
        raise NotThisNetwork(f"patch_embed.proj.weight is {list(weight)}, not [D, C, p, p]")
    width, channels, patch, across = weight
    if patch != across:
        raise NotThisNetwork(
            f"its patches are {patch} x {across} pixels; patches that are not square are not built"
        )
    return width, channels, patch


def number_of_heads(shapes: Mapping[str, Shape], width: int, hints: Hints) -> Heads:
    """The number of attention heads: stated, or fixed by the code that wrote the file; never a guess.

    A wrong count loads without complaint and yields wrong features.

    Raises:
        AmbiguousArchitecture: it follows from nothing known; names the candidates.
    """
    if hints.num_heads is not None:
        if hints.num_heads < 1 or width % hints.num_heads:
            raise AmbiguousArchitecture(
                f"--num-heads {hints.num_heads} does not divide the width {width}; "
                f"candidates: {_listed(_candidates(width))}"
            )
        return Heads(hints.num_heads, "--num-heads")
    for name in ("blocks.0.attn.q_norm.weight", "blocks.0.attn.k_norm.weight"):
        per_head = shapes.get(name, (0,))[0]
        if per_head and per_head < width and width % per_head == 0:
            return Heads(width // per_head, f"{name} has one weight per channel of a head")
    hints.say("num_heads")
    if hints.recorded_heads and width % hints.recorded_heads.count == 0:
        return hints.recorded_heads
    by_width = hints.say("heads_by_width")
    if by_width is not None and width in by_width.value:
        return Heads(by_width.value[width], by_width.source)
    if width in hints.heads_by_width:
        return Heads(hints.heads_by_width[width], f"width {width} in {hints.heads_origin}")
    candidates = _candidates(width)
    known = ", ".join(f"{w}: {h}" for w, h in hints.heads_by_width.items())
    expected = f"{hints.heads_origin} define {known}" if known else "nothing in or beside the file says it"
    raise AmbiguousArchitecture(
        f"a vision transformer of width {width} does not show its number of heads in its tensors, and a "
        f"wrong one loads without complaint; {expected}. Candidates, the likeliest first: "
        f"{_listed(candidates)}. Pass --num-heads {candidates[0]} if that is yours, or --layout NAME of the "
        "code that wrote the file"
    )


def heads_fact(heads: Heads, width: int, hints: Hints) -> Fact:
    """The heads as a fact. Where earlier versions did not look, their number went by the width alone."""
    stated = hints.stated.get("num_heads")
    new = [hints.stated["heads_by_width"].source] if "heads_by_width" in hints.stated else []
    new += [stated.source] if stated is not None and not stated.read_before else []
    unusual = heads.source in new and heads.count != USUAL_HEADS.get(width)
    return Fact("heads", str(heads.count), heads.source, usual=not unusual)


def _candidates(width: int) -> list[int]:
    """Head counts that divide the width, the likeliest first."""
    usual = [USUAL_HEADS[width]] if width in USUAL_HEADS else []
    usual += [width // head for head in USUAL_HEAD_WIDTHS if width % head == 0 and width // head not in usual]
    others = [count for count in range(1, width + 1) if width % count == 0 and count not in usual]
    if not usual:
        others.sort(key=lambda count: abs(math.log(width / count / 64)))
    return usual + others[: 6 - len(usual)] if len(usual) < 6 else usual


def _listed(counts: list[int]) -> str:
    return ", ".join(str(count) for count in counts)


@dataclass(frozen=True)
class FeedForward:
    """The two-layer part of a block: ``mlp``, ``swiglu`` or ``swiglu-packed``, and timm's ``mlp_ratio``."""

    kind: str
    ratio: float


def feed_forward(shapes: Mapping[str, Shape], width: int) -> tuple[FeedForward, str]:
    """The feed-forward part of the blocks, and words for it where it is unusual."""
    out = shapes.get("blocks.0.mlp.fc2.weight", (0, 0))[1]
    if "blocks.0.mlp.fc1_g.weight" in shapes:
        hidden, kind = shapes["blocks.0.mlp.fc1_g.weight"][0], "swiglu"
    else:
        hidden = shapes.get("blocks.0.mlp.fc1.weight", (0,))[0]
        kind = "swiglu-packed" if hidden and hidden == 2 * out else "mlp"
    if not hidden or not out:
        raise NotThisNetwork("no feed-forward layers named blocks.0.mlp.fc1 and blocks.0.mlp.fc2")
    words = "SwiGLU" if kind != "mlp" else ("" if hidden == 4 * width else f"mlp {hidden}")
    return FeedForward(kind, (hidden + 0.5) / width), words  # timm truncates width * ratio


def _grid(
    position: Shape,
    class_token: bool,
    registers: int,
    patch: int,
    hints: Hints,
    renamed: dict[str, Piece],
) -> tuple[tuple[int, int], bool, Fact]:
    """Rows and columns of patches, whether prefix tokens have positions of their own, and what shows it.

    Position tables come as [1, N, D] (no prefix), [1, prefix + N, D], or, in DINOv2 with registers,
    [1, 1 + N, D] where only the class token has a position: that one is added to the class token. Which
    rectangle N patches form is not in the table: a size that is stated and fits it counts, else a square.
    """
    if len(position) != 3 or position[0] != 1:
        raise NotThisNetwork(f"pos_embed is {list(position)}, not [1, tokens, D]")
    length, prefix = position[1], int(class_token) + registers
    counts = list(dict.fromkeys((prefix, int(class_token), 0)))
    fits: list[tuple[int, tuple[int, int], Fact]] = []
    for stated in filter(None, (hints.say("image_size"), hints.say("own_image_size"))):
        rows, columns = (side // patch for side in stated.value)
        value = f"{rows * patch} x {columns * patch} px"
        fact = Fact("image shape", value, stated.source, usual=rows == columns)
        fits += [(extra, (rows, columns), fact) for extra in counts if rows * columns == length - extra > 0]
        whole = not any(side % patch for side in stated.value)
        if (not fits or not whole) and stated.source == "--image-size":
            height, across = stated.value
            if not whole:
                raise FeatureError(
                    f"--image-size {height} x {across} does not divide into its patches of {patch} pixels"
                )
            raise FeatureError(
                f"--image-size {height} x {across} is {rows} x {columns} patches of {patch} pixels, and its "
                f"pos_embed has {length} positions, {prefix} of them for prefix tokens; leave it out"
            )
    for extra in counts:
        side = math.isqrt(max(length - extra, 0))
        if side and side * side == length - extra:
            value = f"square, {side * patch} x {side * patch} px"
            evidence = f"{side * side} positions, which is {side} squared, and nothing says otherwise"
            fits.append((extra, (side, side), hints.fact("image shape", value, evidence)))
    if not fits:
        raise NotThisNetwork(
            f"pos_embed has {length} positions, which leave no square grid beside {prefix} prefix tokens, "
            "and nothing in or beside the file says how high and wide its images are"
        )
    extra, grid, fact = fits[0]
    if class_token and registers and extra == 1:
        _fold_class_position(position, renamed)
        return grid, False, fact
    return grid, extra > 0, fact


def _fold_class_position(position: Shape, renamed: dict[str, Piece]) -> None:
    _, length, width = position
    renamed["cls_token"] = Piece(("cls_token", "pos_embed"), (1, 1, width), lambda t: t[0] + t[1][:, :1])
    renamed["pos_embed"] = Piece(("pos_embed",), (1, length - 1, width), lambda t: t[0][:, 1:].clone())


def _tensors(
    shapes: Mapping[str, Shape], common: dict[str, Any], mlp: FeedForward, final_norm: bool
) -> dict[str, Shape]:
    """The state dict of what `_build` makes of the same arguments."""
    width, head = common["embed_dim"], common["embed_dim"] // common["num_heads"]
    registers, class_token = common["reg_tokens"], common["class_token"]
    patches = math.prod(side // common["patch_size"] for side in common["img_size"])
    prefix = 0 if common["no_embed_class"] else registers + class_token
    tensors: dict[str, Shape] = {"cls_token": (1, 1, width)} if class_token else {}
    if registers:
        tensors["reg_token"] = (1, registers, width)
    tensors["pos_embed"] = (1, patches + prefix, width)
    tensors |= _embedding_tensors(shapes, width, common["in_chans"], common["patch_size"])
    if "norm_pre.weight" in shapes:
        tensors |= norm("norm_pre", width)
    proj_bias = "blocks.0.attn.proj.bias" in shapes
    for block in (f"blocks.{index}" for index in range(common["depth"])):
        tensors |= norm(f"{block}.norm1", width)
        tensors |= linear(f"{block}.attn.qkv", 3 * width, width, bias="blocks.0.attn.qkv.bias" in shapes)
        if "blocks.0.attn.q_norm.weight" in shapes:
            tensors |= {**norm(f"{block}.attn.q_norm", head), **norm(f"{block}.attn.k_norm", head)}
        if "blocks.0.attn.norm.weight" in shapes:
            tensors |= norm(f"{block}.attn.norm", width)
        tensors |= linear(f"{block}.attn.proj", width, width, bias=proj_bias)
        if "blocks.0.ls1.gamma" in shapes:
            tensors[f"{block}.ls1.gamma"] = (width,)
        tensors |= norm(f"{block}.norm2", width)
        scaled = "blocks.0.mlp.norm.weight" in shapes
        tensors |= feed_forward_tensors(f"{block}.mlp", width, mlp, bias=proj_bias, scaled=scaled)
        if "blocks.0.ls1.gamma" in shapes:
            tensors[f"{block}.ls2.gamma"] = (width,)
    return {**tensors, **(norm("norm", width) if final_norm else {})}


def _embedding_tensors(
    shapes: Mapping[str, Shape], width: int, channels: int, patch: int
) -> dict[str, Shape]:
    if CONV_STEM not in shapes:
        bias = "patch_embed.proj.bias" in shapes
        return convolution("patch_embed.proj", width, channels, patch, bias=bias)
    tensors: dict[str, Shape] = {}
    for place in range(0, 12, 3):
        out, channels = shapes.get(f"patch_embed.proj.{place}.weight", (0, 0))[:2]
        tensors |= convolution(f"patch_embed.proj.{place}", out, channels, 3)
        tensors |= batch_norm(f"patch_embed.proj.{place + 1}", out)
    out, channels = shapes[CONV_STEM][:2]
    return {**tensors, **convolution("patch_embed.proj.12", out, channels, 1, bias=True)}


def feed_forward_tensors(
    name: str, width: int, mlp: FeedForward, *, bias: bool = True, scaled: bool = False
) -> dict[str, Shape]:
    """The state dict of timm's Mlp, SwiGLU or SwiGLUPacked; `scaled` with a norm before its last layer."""
    hidden = int(width * mlp.ratio)
    inner = hidden // 2 if mlp.kind == "swiglu-packed" else hidden
    first = ("fc1_g", "fc1_x") if mlp.kind == "swiglu" else ("fc1",)
    tensors: dict[str, Shape] = {}
    for layer in first:
        tensors |= linear(f"{name}.{layer}", hidden, width, bias=bias)
    tensors |= norm(f"{name}.norm", inner) if scaled else {}
    return {**tensors, **linear(f"{name}.fc2", width, inner, bias=bias)}


def _build(
    shapes: Mapping[str, Shape],
    common: dict[str, Any],
    mlp: FeedForward,
    activation: str,
    eps: float,
    final_norm: bool,
) -> nn.Module:
    from timm.layers.mlp import SwiGLU, SwiGLUPacked
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    def embed(*args: Any, bias: bool = True, **kwargs: Any) -> nn.Module:
        made = PatchEmbed(*args, bias="patch_embed.proj.bias" in shapes, **kwargs)
        if CONV_STEM in shapes:
            made.register_module("proj", _conv_stem(shapes))
        return made

    extra: dict[str, Any] = {}
    if mlp.kind != "mlp":
        gated: Any = SwiGLU if mlp.kind == "swiglu" else SwiGLUPacked
        extra.update(mlp_layer=gated, act_layer=nn.SiLU)
    elif activation != "gelu":
        extra.update(act_layer=unseen.layer(activation))
    if "blocks.0.attn.norm.weight" in shapes:
        extra.update(scale_attn_norm=True)
    if "blocks.0.mlp.norm.weight" in shapes:
        extra.update(scale_mlp_norm=True)
    if "blocks.0.attn.proj.bias" not in shapes:
        extra.update(proj_bias=False)
    return VisionTransformer(
        **common,
        num_classes=0,
        mlp_ratio=mlp.ratio,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        qk_norm="blocks.0.attn.q_norm.weight" in shapes,
        init_values=1.0 if "blocks.0.ls1.gamma" in shapes else None,
        pre_norm="norm_pre.weight" in shapes,
        final_norm=final_norm,
        fc_norm=False,  # the norm belongs before pooling: tokens are read, nothing is pooled
        norm_layer=partial(nn.LayerNorm, eps=eps),
        embed_layer=embed,
        weight_init="skip",
        **extra,
    )


def _conv_stem(shapes: Mapping[str, Shape]) -> nn.Sequential:
    """Four 3x3 convolutions of stride two with batch norm and ReLU, then a 1x1 one (arXiv 2106.14881)."""
    from torch import nn

    layers: list[nn.Module] = []
    for place in range(0, 12, 3):
        out, channels, *_ = shapes[f"patch_embed.proj.{place}.weight"]
        layers += [
            nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        ]
    width, channels, *_ = shapes[CONV_STEM]
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


FAMILY = Family(recognise)
