"""Configurations of OpenMMLab: Python text in the file, parsed and never run."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from dse_monitor.checkpoints.reading.contents import attributes
from dse_monitor.checkpoints.recognition.sources import hugging_face, values
from dse_monitor.checkpoints.recognition.sources.values import Statement, stated

MAX_TEXT = 1 << 20  # characters; the longest published configuration has some 30,000
MAX_NESTING = 60  # brackets in brackets
MAX_CHAIN = 4000  # characters between brackets and commas, so that no expression is deep

_PLACES = (("meta", "cfg"), ("meta", "config"))  # mmengine's, mmcv's

# Attention heads by `arch` of mmpretrain's VisionTransformer and those built on it, with the width of each:
# mmpretrain/models/backbones/vision_transformer.py and models/selfsup/mocov3.py.
ARCHITECTURES = {
    ("s", "small"): (768, 8),
    ("b", "base", "deit-b", "deit-base", "dinov2-b", "dinov2-base"): (768, 12),
    ("l", "large", "dinov2-l", "dinov2-large"): (1024, 16),
    ("h", "huge"): (1280, 16),
    ("eva-g", "eva-giant"): (1408, 16),
    ("deit-t", "deit-tiny"): (192, 3),
    ("deit-s", "deit-small", "dinov2-s", "dinov2-small"): (384, 6),
    ("dinov2-g", "dinov2-giant"): (1536, 24),
    ("mocov3-s", "mocov3-small"): (384, 12),
}
_TRANSFORMERS = re.compile(r"(?:mmpretrain\.|mmcls\.|mmselfsup\.)?\w*(?:VisionTransformer|ViT)\w*")


def read(tree: Any) -> Iterator[Statement]:
    """What the configuration in the file says of the backbone and its images."""
    for outer, inner in _PLACES:
        text = attributes(tree.get(outer)).get(inner) if isinstance(tree, Mapping) else None
        config = parsed(text) if isinstance(text, str) else attributes(text)
        if config:
            place = f"{outer}.{inner} in the file"
            yield from _backbone(config, place)
            yield from _images(config, place)
            return


def parsed(text: str) -> dict[str, Any]:
    """The assignments at the top of a configuration: literals, and calls of `dict` with names.

    Everything else in it is left out, and so is a text that is no Python, or larger or deeper than any
    configuration.
    """
    if not _is_tame(text):
        return {}
    found: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its backslashes
            tree = ast.parse(text)
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = _literal(node.value, found)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return {}
    return found


def _is_tame(text: str) -> bool:
    """Whether parsing it can neither take long nor go deep."""
    if len(text) > MAX_TEXT:
        return False
    depth = deepest = 0
    for bracket in re.findall(r"[()\[\]{}]", text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest <= MAX_NESTING and max(map(len, re.split(r"[()\[\]{},]", text))) <= MAX_CHAIN


def _literal(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """The value of a literal; None where it is none."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = values.number(_literal(node.operand, known))
        return None if value is None else -value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item, known) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _literal(item, known) for key, item in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {item.arg: _literal(item.value, known) for item in node.keywords if item.arg is not None}
    return None


def _backbone(config: Mapping[str, Any], place: str) -> Iterator[Statement]:
    backbone = attributes(attributes(config.get("model")).get("backbone"))
    kind = values.word(backbone.get("type")) or ""
    where = f"model.backbone of {place}"
    arch = backbone.get("arch")
    if isinstance(arch, str) and _TRANSFORMERS.fullmatch(kind):
        for names, (width, heads) in ARCHITECTURES.items():
            if arch.lower() in names:
                yield Statement("heads_by_width", {width: heads}, f"arch {arch!r} in {where}")
    else:
        inner = attributes(arch)
        yield from stated("num_heads", values.count(inner.get("num_heads")), f"arch.num_heads in {where}")
    yield from stated("image_size", values.size(backbone.get("img_size")), f"img_size in {where}")
    for field in ("in_channels", "in_chans"):
        found = values.count(backbone.get(field), values.MAX_CHANNELS)
        yield from stated("in_chans", found, f"{field} in {where}")
    norm = attributes(backbone.get("norm_cfg"))
    if norm.get("type") == "LN":
        yield from stated("norm_eps", values.epsilon(norm.get("eps")), f"norm_cfg in {where}")
    yield from _activation(backbone, kind, where)
    if kind.rsplit(".", 1)[-1].startswith("ResNet"):
        unusual = _unusual_strides(backbone)
        yield Statement("strides", unusual, where)


def _activation(backbone: Mapping[str, Any], kind: str, where: str) -> Iterator[Statement]:
    """Of the layers; mmpretrain's transformers have GELU where nothing else is configured."""
    layers = backbone.get("layer_cfgs")
    for group in (attributes(layers), backbone):
        found = values.activation(attributes(group.get("act_cfg")).get("type"))
        if found is not None:
            yield Statement("activation", found, f"act_cfg in {where}")
            return
    if _TRANSFORMERS.fullmatch(kind) and not isinstance(layers, list):
        yield Statement("activation", "gelu", f"{kind} in {where}, which has it unless configured")


def _unusual_strides(backbone: Mapping[str, Any]) -> str:
    """What is unusual about where a residual network halves its map; empty if nothing is."""
    for field, usual in (("strides", [1, 2, 2, 2]), ("dilations", [1, 1, 1, 1])):
        found = backbone.get(field)
        if isinstance(found, list) and found != usual:
            return f"{field} {str(found[:8])[:60]}"
    if backbone.get("style", "pytorch") != "pytorch":
        return "the stride in the first convolution of a block (style caffe)"
    return ""


def _images(config: Mapping[str, Any], place: str) -> Iterator[Statement]:
    """Normalisation, in its places of several releases."""
    model = attributes(config.get("model"))
    for holder, name in (
        (model.get("data_preprocessor"), "model.data_preprocessor"),
        (config.get("data_preprocessor"), "data_preprocessor"),
        (config.get("img_norm_cfg"), "img_norm_cfg"),
    ):
        group = attributes(holder)
        found = list(
            hugging_face.normalisation(
                group.get("mean"), group.get("std"), "mean", "std", f"{name} of {place}"
            )
        )
        yield from found
        rgb = group.get("to_rgb") is True or group.get("bgr_to_rgb") is True
        of_bytes = values.numbers(group.get("mean")) and max(group["mean"]) > 1.5  # files read by OpenCV
        if found and of_bytes and not rgb:
            yield Statement("channel_order", "BGR", f"{name} of {place}")
        elif found:
            yield Statement("channel_order", "RGB", f"{name} of {place}")
