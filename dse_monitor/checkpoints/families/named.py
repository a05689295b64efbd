"""A network the user names: any timm model whose last layer is a grid of tokens or a map."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.network import IMAGE_SIZE, Hints, Network, NotThisNetwork
from dse_monitor.checkpoints.families.outputs import timm_tokens
from dse_monitor.checkpoints.families.statedicts import Shape
from dse_monitor.errors import AmbiguousArchitecture

if TYPE_CHECKING:
    from torch import nn


def recognise(arch: str, shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The timm model called `arch`, at the image size its tensors were made for.

    Raises:
        NotThisNetwork: timm has no such model, or cannot build it with these options.
    """
    import timm

    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), n=3)
        raise NotThisNetwork(
            f"timm has no model {arch!r}" + (f"; near it: {', '.join(near)}" if near else "")
        )
    options: dict[str, Any] = {} if hints.num_heads is None else {"num_heads": hints.num_heads}
    probe = _build(arch, options, on_meta=True)
    _check_heads(arch, probe, hints)
    size = _image_size(probe, shapes)
    fixed = getattr(probe, "pos_embed", None) is not None
    if fixed and size != _own_size(probe):
        options["img_size"] = size
        probe = _build(arch, options, on_meta=True)
    grid, width = _output(probe, size)
    return Network(
        family="named",
        description=f"{arch} of timm" + (f", {hints.num_heads} heads" if hints.num_heads else ""),
        build=partial(_build, arch, options),
        tensors={name: tuple(tensor.shape) for name, tensor in probe.state_dict().items()},
        buffers=frozenset(name for name, _ in probe.named_buffers()),
        tokens=timm_tokens,
        grid=grid,
        width=width,
        image_size=(size, size),
        any_size=not fixed,
        notes=(f"The architecture {arch} was given by --arch and not checked against the number of heads.",),
    )


def _build(arch: str, options: dict[str, Any], on_meta: bool = False) -> nn.Module:
    import timm
    import torch

    def create() -> nn.Module:
        return timm.create_model(arch, num_classes=0, pretrained=False, **options).eval()

    try:
        if not on_meta:
            return create()
        try:
            with torch.device("meta"):
                return create()
        except RuntimeError:  # older releases of timm look at values while they build
            return create().to("meta")
    except (TypeError, AssertionError, ValueError) as error:
        raise NotThisNetwork(f"timm cannot build {arch} with {options}: {error}") from error


def _check_heads(arch: str, model: Any, hints: Hints) -> None:
    """Refuse a name whose heads contradict the training code's: it would load, and give wrong features."""
    blocks = getattr(model, "blocks", None)
    heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None
    expected = hints.heads_by_width.get(getattr(model, "embed_dim", 0))
    if hints.num_heads is None and heads and expected and heads != expected:
        raise AmbiguousArchitecture(
            f"--arch {arch} has {heads} attention heads, {hints.heads_origin} have {expected} at that width. "
            f"Candidates: {expected}, {heads}. Pass --num-heads N"
        )


def _own_size(model: Any) -> int:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size:
        return size[0]
    return model.pretrained_cfg.get("input_size", (3, IMAGE_SIZE))[-1]


def _image_size(model: Any, shapes: Mapping[str, Shape]) -> int:
    """The image side a position table was made for; the model's own side without one."""
    position = shapes.get("pos_embed", ())
    if len(position) != 3 or not hasattr(model, "patch_embed"):
        return _own_size(model)
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 0)
    side = math.isqrt(max(position[1] - prefix, 0))
    return side * model.patch_embed.patch_size[0]


def _output(model: Any, size: int) -> tuple[tuple[int, int], int]:
    """Rows and columns of the tokens, and their width, from a forward pass that computes nothing."""
    import torch

    with torch.no_grad():
        tokens = timm_tokens(model, torch.empty(1, 3, size, size, device="meta")).dense
    side = math.isqrt(tokens.shape[1])
    return (side, side), tokens.shape[2]
