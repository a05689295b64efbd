"""What timm's networks return, as tokens. Importing this loads no torch.

Shapes: B images, C channels, H x W pixels, D feature width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dse_monitor.tokens import Tokens, from_map, without_prefix

if TYPE_CHECKING:
    from torch import Tensor


def timm_tokens(model: Any, images: Tensor, layer: int | None = None) -> Tokens:
    """The output of the model's own `forward_features`: prefix tokens apart, maps read row by row.

    Args:
        model: a network of timm.
        images: [B, C, H, W].
        layer: entry of the model's `feature_info`, counted from 1 (a block of a transformer, a stage of
            others); the final norm is applied to the tokens of transformers, as DINO's evaluation does. None:
            the last layer.

    Raises:
        ValueError: the output is neither tokens nor a map.
    """
    if layer is None:
        return _taken_apart(model, model.forward_features(images))
    prefix = getattr(model, "num_prefix_tokens", 0)
    wanted: dict[str, Any] = dict(indices=[layer - 1], norm=True, intermediates_only=True)
    if prefix:
        [(dense, first)] = model.forward_intermediates(
            images, return_prefix_tokens=True, output_fmt="NLC", **wanted
        )
        has_cls = _has_cls(model)
        rest = first[:, int(has_cls) :]
        return Tokens(dense, first[:, 0] if has_cls else None, rest if rest.shape[1] else None)
    [features] = model.forward_intermediates(images, output_fmt="NCHW", **wanted)
    return from_map(features)


def _taken_apart(model: Any, features: Tensor) -> Tokens:
    if features.ndim == 3:
        return without_prefix(features, getattr(model, "num_prefix_tokens", 0), has_cls=_has_cls(model))
    if features.ndim != 4:
        raise ValueError(f"its features are {list(features.shape)}, neither tokens nor a map")
    return from_map(features, channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC")


def _has_cls(model: Any) -> bool:
    return getattr(model, "cls_token", None) is not None and getattr(model, "num_prefix_tokens", 0) > 0
