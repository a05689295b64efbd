"""What a network of timm returns, decided from a forward pass without numbers. Importing this loads no torch.

Shapes: B images, C channels, H x W pixels, N dense tokens per image, D feature width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families.network import NotThisNetwork
from dse_monitor.checkpoints.named.construction import Template, output_of
from dse_monitor.tokens import Tokens, from_map, without_prefix

if TYPE_CHECKING:
    from torch import Tensor

SEQUENCE = "tokens in sequence"
ROWS_FIRST = "a map, channels last"
CHANNELS_FIRST = "a map, channels first"
LAST_STAGE = "the map of a stage alone"
_CLASS_TOKENS = ("cls_token", "cls_tokens", "cls_token1")


@dataclass(frozen=True)
class Reading:
    """How the tokens are taken from what `forward_features` returns.

    Attributes:
        kind: SEQUENCE, ROWS_FIRST, CHANNELS_FIRST or LAST_STAGE.
        grid: rows and columns.
        width: D.
        prefix: tokens before the dense ones.
        has_cls: whether the first of them is a class token.
        layers: entries of `feature_info` whose tokens the class gives out; 0 if it gives out none.
    """

    kind: str
    grid: tuple[int, int]
    width: int
    prefix: int = 0
    has_cls: bool = False
    layers: int = 0

    def tokens(self, module: Any, images: Tensor, layer: int | None = None) -> Tokens:
        """The tokens of images [B, C, H, W]; `layer` counts from 1, None is the output itself."""
        if layer is not None or self.kind == LAST_STAGE:
            return self._intermediate(module, images, layer or self.layers)
        features = module.forward_features(images)
        if self.kind == SEQUENCE:
            return without_prefix(features, self.prefix, has_cls=self.has_cls)
        return from_map(features, channels_last=self.kind == ROWS_FIRST)

    def _intermediate(self, module: Any, images: Tensor, layer: int) -> Tokens:
        found = _map(module, images, layer, with_prefix=self.prefix > 0)
        if not isinstance(found, tuple):
            return from_map(found)
        features, first = found
        rest = first[:, int(self.has_cls) :]
        cls = first[:, 0] if self.has_cls else None
        return Tokens(from_map(features).dense, cls, rest if rest.shape[1] else None)


def _map(module: Any, images: Tensor, layer: int, *, with_prefix: bool = False) -> Any:
    """The map [B, D, rows, columns] of a layer, its final norm applied where there is one.

    With `with_prefix` a pair of it and of the prefix tokens [B, P, D], if the class gives them out.
    """
    forward = module.forward_intermediates
    wanted: dict[str, Any] = {"indices": [layer - 1], "intermediates_only": True, "output_fmt": "NCHW"}
    if with_prefix and _takes(forward, "return_prefix_tokens"):
        wanted["return_prefix_tokens"] = True
    try:
        [found] = forward(images, norm=True, **wanted)
    except (TypeError, AssertionError, ValueError):
        [found] = forward(images, **wanted)  # classes without a norm on their maps say so
    return found


def reading(made: Template, channels: int, size: tuple[int, int], *, by_layer: bool = False) -> Reading:
    """How the tokens of a network of timm are read at this image size.

    Args:
        made: the network.
        channels: C.
        size: height and width, px.
        by_layer: whether a layer's map is asked for, which some networks have that give out no tokens.

    Raises:
        NotThisNetwork: it takes no such images, or its output is no map of tokens.
    """
    module = made.module
    features = output_of(made, lambda model, images: model.forward_features(images), (channels, *size))
    layers = _layers(module)
    try:
        return _of_features(module, features, size, layers)
    except NotThisNetwork as error:
        dense = _last_stage(made, (channels, *size), layers)
        if dense is None:
            raise
        if not by_layer:
            raise NotThisNetwork(f"{error}; --layer N takes the map of one of its {layers} stages") from error
        _, width, rows, columns = dense.shape
        return Reading(LAST_STAGE, (rows, columns), width, layers=layers)


def _last_stage(made: Template, size: tuple[int, int, int], layers: int) -> Tensor | None:
    try:
        dense = output_of(made, lambda model, images: _map(model, images, layers), size) if layers else None
    except NotThisNetwork:
        return None
    return dense if getattr(dense, "ndim", 0) == 4 else None


def _of_features(module: Any, features: Any, size: tuple[int, int], layers: int) -> Reading:
    shape: list[int] = list(getattr(features, "shape", ()))
    if len(shape) not in (3, 4):
        found = f"of shape {shape}" if shape else f"a {type(features).__name__}"
        raise NotThisNetwork(f"its features are {found}, neither tokens nor a map, so DSE cannot be measured")
    width = getattr(module, "num_features", 0)
    if len(shape) == 4:
        return _of_map(module, shape[1:], width, layers)
    grid, prefix = _grid(module, shape[1], size)
    if shape[2] != width and shape[1] == width:
        raise NotThisNetwork(f"its features are {shape}, channels before tokens")
    cls = prefix > 0 and any(getattr(module, name, None) is not None for name in _CLASS_TOKENS)
    return Reading(SEQUENCE, grid, shape[2], prefix, cls, layers)


def _of_map(module: Any, shape: Sequence[int], width: int, layers: int) -> Reading:
    """A map [D, rows, columns] or [rows, columns, D]: the axis of the features is known by its length."""
    first, last = shape[0] == width, shape[2] == width
    if first == last:  # neither, or both by chance
        stated = getattr(module, "output_fmt", None)
        last = str(getattr(stated, "value", stated)) == "NHWC"
        if not last and not first and stated is None and shape[1] == shape[2] != shape[0]:
            first = True
        elif not last and stated is None and not first:
            raise NotThisNetwork(
                f"its features are {list(shape)}; which axis is the {width} features is not known"
            )
    if last:
        return Reading(ROWS_FIRST, (shape[0], shape[1]), shape[2], layers=layers)
    return Reading(CHANNELS_FIRST, (shape[1], shape[2]), shape[0], layers=layers)


def _grid(module: Any, count: int, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Rows and columns of tokens in sequence, and how many others stand before them.

    Raises:
        NotThisNetwork: no step of the patches explains the number of tokens.
    """
    stated = getattr(module, "num_prefix_tokens", None)
    for vertical, horizontal in _steps(module):
        for rounded in (math.floor, math.ceil):
            grid = rounded(size[0] / vertical), rounded(size[1] / horizontal)
            prefix = count - math.prod(grid)
            if prefix == stated or (stated is None and 0 <= prefix <= 1):
                return grid, prefix
    raise NotThisNetwork(
        f"its {count} tokens for {size[0]} x {size[1]} pixels are not rows and columns of equal patches"
    )


def _steps(module: Any) -> list[tuple[int, int]]:
    """Pixels between neighbouring tokens, down and across, as the network itself says."""
    found: list[tuple[int, int]] = []
    info = list(getattr(module, "feature_info", None) or [])
    if info and isinstance(info[-1], dict) and info[-1].get("reduction"):
        found.append((info[-1]["reduction"],) * 2)
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if patch:
        found.append(tuple(patch) if isinstance(patch, (tuple, list)) else (patch, patch))  # pyright: ignore
    return [*found, (16, 16), (32, 32), (8, 8)]


def _layers(module: Any) -> int:
    """Layers the class gives out, as many as its `feature_info` lists."""
    if not hasattr(module, "forward_intermediates"):
        return 0
    return len(list(getattr(module, "feature_info", None) or []))


def _takes(function: Any, name: str) -> bool:
    return name in inspect.signature(function).parameters
