"""DINOv3's transformers: rotary positions, registers, usually layer scale; built as timm's Eva.

Shapes: D width, p patch side, h heads; ``rope.periods`` is [D / h / 4].
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families import Family, unseen
from dse_monitor.checkpoints.families.layers import convolution, linear, norm
from dse_monitor.checkpoints.families.network import (
    Heads,
    Hints,
    Network,
    NotThisNetwork,
    count_blocks,
)
from dse_monitor.checkpoints.families.outputs import timm_tokens
from dse_monitor.checkpoints.families.refusals import plausible
from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.checkpoints.families.vit import (
    FeedForward,
    feed_forward,
    feed_forward_tensors,
    heads_fact,
    number_of_heads,
    patch_embedding,
)
from dse_monitor.facts import Fact

if TYPE_CHECKING:
    from torch import nn

NORM_EPS = 1e-5  # LayerNorm epsilon of DINOv3, also in timm and transformers
TEMPERATURE = 100.0  # base of the rotary periods in every published DINOv3; transformers calls it rope_theta


def recognise(shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network of these tensors (the names of timm's Eva).

    Raises:
        NotThisNetwork: no such transformer that can be built.
        AmbiguousArchitecture: the number of heads follows from nothing known.
    """
    plausible(shapes)
    width, channels, patch = patch_embedding(shapes)
    depth = count_blocks(shapes, "blocks.")
    if "cls_token" not in shapes or "norm.weight" not in shapes:
        raise NotThisNetwork("DINOv3 has a class token and a final norm")
    if "norm.bias" not in shapes:
        raise NotThisNetwork("its norms have no bias (RMSNorm); LayerNorm is built")
    registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
    heads = _heads(shapes, width, hints)
    mlp, mlp_words = feed_forward(shapes, width)
    usual = "gelu" if mlp.kind == "mlp" else "silu"
    act = unseen.activation(hints, usual, "every published DINOv3", built=(usual,))
    eps = unseen.norm_epsilon(hints, NORM_EPS, "every published DINOv3")
    theta = _temperature(hints)
    size = unseen.free_size(hints)
    options: dict[str, Any] = dict(
        patch_size=patch,
        in_chans=channels,
        embed_dim=width,
        depth=depth,
        num_heads=heads.count,
        qkv_bias="blocks.0.attn.q_bias" in shapes,
        mlp_ratio=mlp.ratio / (2 if mlp.kind == "swiglu-packed" else 1),  # timm doubles it for both halves
        swiglu_mlp=mlp.kind != "mlp",
        swiglu_align_to=1 if mlp.kind == "swiglu" else 0,  # any alignment makes timm keep the halves apart
        num_reg_tokens=registers,
        rope_temperature=theta.value,
        init_values=1.0 if "blocks.0.gamma_1" in shapes else None,
        norm_eps=eps.value,
    )
    height, across = (max(side - side % patch, patch) for side in size.value)
    words = [
        f"vit {width}x{depth}",
        f"{heads.count} heads",
        f"patch {patch}{unseen.bands(channels)}",
        mlp_words,
        f"{registers} registers" if registers else "",
        "rotary positions",
    ]
    stored = "rope.periods" in shapes
    key_bias = "blocks.0.attn.k_bias" in shapes and options["qkv_bias"]
    tensors = _tensors(options, mlp, stored, key_bias)
    return Network(
        family="dinov3",
        description=", ".join(word for word in words if word),
        build=partial(_build, options, stored, key_bias),
        tensors=tensors,
        buffers=frozenset(name for name in tensors if name.endswith((".periods", ".k_bias"))),
        tokens=timm_tokens,
        grid=(height // patch, across // patch),
        width=width,
        channels=channels,
        image_size=(height, across),
        layers=depth,
        any_size=True,
        heads=f"{heads.count} ({heads.source})",
        facts=(
            heads_fact(heads, width, hints),
            act.fact,
            eps.fact,
            *(() if stored else (theta.fact,)),
            hints.fact(
                "positions", "rotary, of coordinates in [-1, 1], no absolute ones", "every published DINOv3"
            ),
            size.fact,
        ),
    )


def _temperature(hints: Hints) -> unseen.Unseen:
    """Base of the rotary periods, where the file does not hold the periods themselves."""
    stated = hints.say("rope_theta")
    if stated is None:
        fact = hints.fact("rotary base", f"{TEMPERATURE:g}", "every published DINOv3")
        return unseen.Unseen(TEMPERATURE, fact)
    return unseen.Unseen(stated.value, Fact("rotary base", f"{stated.value:g}", stated.source))


def _heads(shapes: Mapping[str, Shape], width: int, hints: Hints) -> Heads:
    periods = shapes.get("rope.periods", (0,))[0]
    if periods and width % (4 * periods) == 0:
        return Heads(width // (4 * periods), "the rotary periods stored in the file")
    return number_of_heads(shapes, width, hints)


def _tensors(
    options: dict[str, Any], mlp: FeedForward, periods_stored: bool, key_bias: bool
) -> dict[str, Shape]:
    """The state dict of what `_build` makes of the same arguments."""
    width, registers = options["embed_dim"], options["num_reg_tokens"]
    tensors: dict[str, Shape] = {"cls_token": (1, 1, width)}
    if registers:
        tensors["reg_token"] = (1, registers, width)
    tensors |= convolution("patch_embed.proj", width, options["in_chans"], options["patch_size"], bias=True)
    if periods_stored:
        tensors["rope.periods"] = (width // options["num_heads"] // 4,)
    for block in (f"blocks.{index}" for index in range(options["depth"])):
        if options["init_values"]:
            tensors |= {f"{block}.gamma_1": (width,), f"{block}.gamma_2": (width,)}
        tensors |= norm(f"{block}.norm1", width)
        if options["qkv_bias"]:
            tensors |= {f"{block}.attn.q_bias": (width,), f"{block}.attn.v_bias": (width,)}
        if key_bias:
            tensors[f"{block}.attn.k_bias"] = (width,)
        tensors |= linear(f"{block}.attn.qkv", 3 * width, width, bias=False)
        tensors |= linear(f"{block}.attn.proj", width, width)
        tensors |= norm(f"{block}.norm2", width)
        tensors |= feed_forward_tensors(f"{block}.mlp", width, mlp)
    return {**tensors, **norm("norm", width)}


def _build(options: dict[str, Any], periods_stored: bool, key_bias: bool) -> nn.Module:
    from timm.models.eva import Eva
    from torch import nn

    options = dict(options)
    norm_layer = partial(nn.LayerNorm, eps=options.pop("norm_eps"))
    try:
        model = Eva(
            **options,
            num_classes=0,
            global_pool="token",
            use_abs_pos_emb=False,
            use_rot_pos_emb=True,
            rope_type="dinov3",
            rope_rotate_half=True,
            use_fc_norm=False,
            dynamic_img_size=True,
            norm_layer=norm_layer,
        )
    except TypeError as error:  # the installed timm is older than DINOv3
        raise NotThisNetwork(
            f"this timm cannot build DINOv3 ({error}); install timm 1.0.20 or newer"
        ) from None
    if periods_stored:  # take the file's, which were rounded when it was written, not freshly computed ones
        rope: Any = model.rope
        rope.register_buffer("periods", rope.periods, persistent=True)
    blocks: Any = model.blocks
    for block in blocks if key_bias else ():  # timm's is fixed at zero
        block.attn.register_buffer("k_bias", block.attn.k_bias, persistent=True)
    return model


FAMILY = Family(recognise)
