"""JSON beside the weights: config.json and preprocessor_config.json of transformers, timm's, open_clip's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dse_monitor.checkpoints.recognition.sources import values
from dse_monitor.checkpoints.recognition.sources.values import Statement, stated

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
OPEN_CLIP = "open_clip_config.json"

_SMALL_EDGE = 384  # px; ConvNeXt's processor resizes images smaller than this with room for a crop


def read(sidecars: Mapping[str, Any]) -> Iterator[Statement]:
    """What these files say, the most specific first."""
    preprocessor, config, open_clip = (
        content if isinstance(content := sidecars.get(name), dict) else {}
        for name in (PREPROCESSOR, CONFIG, OPEN_CLIP)
    )
    yield from _preprocessor(preprocessor)
    yield from _open_clip(open_clip)
    if isinstance(config.get("architecture"), str):
        yield from _timm(config)
    else:
        yield from _transformers(config)


def _transformers(config: Mapping[str, Any]) -> Iterator[Statement]:
    def field(name: str, key: str, found: Any) -> Iterator[Statement]:
        return stated(name, found, f"{key} in {CONFIG}", read_before=True)

    yield from field("num_heads", "num_attention_heads", values.count(config.get("num_attention_heads")))
    yield from field("norm_eps", "layer_norm_eps", values.epsilon(config.get("layer_norm_eps")))
    yield from field("activation", "hidden_act", values.activation(config.get("hidden_act")))
    for name in ("image_size", "own_image_size"):  # of images, which a processor may say too; of positions
        yield from field(name, "image_size", values.size(config.get("image_size")))
    inner = config.get("rope_parameters")
    theta = values.number(inner.get("rope_theta") if isinstance(inner, dict) else config.get("rope_theta"))
    yield from field("rope_theta", "rope_theta", theta if theta is not None and 1 < theta < 1e9 else None)
    yield from field(
        "in_chans", "num_channels", values.count(config.get("num_channels"), values.MAX_CHANNELS)
    )


def _timm(config: Mapping[str, Any]) -> Iterator[Statement]:
    """The config.json that timm pushes to the hub; earlier releases had its data part at the top."""
    yield from stated("arch", values.word(config["architecture"]), f"architecture in {CONFIG}")
    pretrained = config.get("pretrained_cfg")
    if isinstance(pretrained, dict) and pretrained:
        yield from pretrained_cfg(pretrained, f"pretrained_cfg in {CONFIG}")
    else:
        yield from pretrained_cfg(config, CONFIG)


def pretrained_cfg(config: Mapping[str, Any], place: str) -> Iterator[Statement]:
    """The data part of a pretrained configuration of timm."""
    yield from normalisation(config.get("mean"), config.get("std"), "mean", "std", place)
    for name, found in (
        ("interpolation", values.interpolation(config.get("interpolation"))),
        ("crop_pct", values.share(config.get("crop_pct"))),
        ("image_size", values.size(config.get("input_size"))),
    ):
        yield from stated(name, found, f"{name} of {place}")
    mode = config.get("crop_mode")
    yield from stated("crop_mode", values.word(mode), f"crop_mode of {place}")


def normalisation(
    mean: Any, std: Any, mean_key: str, std_key: str, place: str, standing: str = ""
) -> Iterator[Statement]:
    """Mean and standard deviation that stand together."""
    found = values.statistics(mean, std)
    if found is not None:
        yield Statement("mean", found[0], f"{mean_key} of {place}", standing)
        yield Statement("std", found[1], f"{std_key} of {place}", standing)


def _preprocessor(config: Mapping[str, Any]) -> Iterator[Statement]:
    """An image processor of transformers."""
    if isinstance(config.get("image_processor"), dict):  # a processor of several parts
        config = {**config, **config["image_processor"]}
    scale = 1.0 if config.get("do_rescale") is False else values.number(config.get("rescale_factor"))
    factor = 255 * scale if scale is not None and 0 < scale <= 255 else 1.0  # of values in [0, 1]
    said = "" if abs(factor - 1) < 1e-3 else " and its rescaling"
    for name, nothing in (("mean", 0.0), ("std", 1.0)):
        found, source = values.numbers(config.get(f"image_{name}")), f"image_{name} in {PREPROCESSOR}"
        if config.get("do_normalize") is False:
            found, source = (nothing,), f"do_normalize in {PREPROCESSOR} is false"
        if found is not None and (name == "mean" or min(found) > 0):
            scaled = tuple(value / factor for value in found) if said else found
            yield Statement(name, scaled, source + said)
    yield from _geometry(config)


def _geometry(config: Mapping[str, Any]) -> Iterator[Statement]:
    """Resizing and cropping.

    A size of height and width squashes, a shortest edge keeps the ratio; a crop follows where it is asked
    for. Processors of ConvNeXt crop without being asked, unless the edge is long.
    """
    yield from stated(
        "interpolation", values.interpolation(config.get("resample")), f"resample in {PREPROCESSOR}"
    )
    if config.get("do_resize") is False:
        return
    wanted = config.get("size")
    edge = wanted.get("shortest_edge") if isinstance(wanted, dict) else wanted
    kept = values.size(wanted)
    shortest = values.count(edge, values.MAX_SIDE)
    crop = values.size(config.get("crop_size")) if config.get("do_center_crop") else None
    if shortest is not None and config.get("crop_pct") is not None:
        part = values.share(config.get("crop_pct"))
        yield Statement("image_size", (shortest, shortest), f"size in {PREPROCESSOR}")
        if shortest >= _SMALL_EDGE:
            yield Statement("crop_mode", "squash", f"a size of {shortest} in {PREPROCESSOR}")
        elif part is not None:
            yield Statement("crop_pct", part, f"crop_pct in {PREPROCESSOR}")
            yield Statement("crop_mode", "center_floor", f"crop_pct in {PREPROCESSOR}")
        return
    if crop is not None:
        yield Statement("image_size", crop, f"crop_size in {PREPROCESSOR}")
        if shortest is not None:
            yield Statement("resize", (shortest, shortest), f"size in {PREPROCESSOR}")
            yield Statement("crop_mode", "center_floor", f"crop_size in {PREPROCESSOR}")
        elif kept is not None and kept[0] >= crop[0] and kept[1] >= crop[1]:
            yield Statement("resize", kept, f"size in {PREPROCESSOR}")
            yield Statement("crop_mode", "squash", f"size in {PREPROCESSOR}")
    elif kept is not None:
        yield Statement("image_size", kept, f"size in {PREPROCESSOR}")
        square = not isinstance(wanted, int)  # a plain number meant height and width in old processors of ViT
        yield Statement(
            "crop_mode", "squash", f"size in {PREPROCESSOR}{'' if square else ', a plain number'}"
        )
    elif shortest is not None:
        yield Statement("image_size", (shortest, shortest), f"size in {PREPROCESSOR}")
        yield Statement("resize", (shortest, shortest), f"size in {PREPROCESSOR}")


def _open_clip(config: Mapping[str, Any]) -> Iterator[Statement]:
    """open_clip's description of a whole model, of which the image tower matters."""
    images, model = (
        part if isinstance(part := config.get(key), dict) else {} for key in ("preprocess_cfg", "model_cfg")
    )
    yield from normalisation(
        images.get("mean"), images.get("std"), "mean", "std", f"preprocess_cfg in {OPEN_CLIP}"
    )
    place = f"preprocess_cfg in {OPEN_CLIP}"
    yield from stated(
        "interpolation", values.interpolation(images.get("interpolation")), f"interpolation of {place}"
    )
    yield from stated("image_size", values.size(images.get("size")), f"size of {place}")
    mode = images.get("resize_mode")
    if mode == "squash":
        yield Statement("crop_mode", "squash", f"resize_mode of {place}")
    elif mode in ("shortest", None) and images:
        yield Statement("crop_pct", 1.0, f"resize_mode of {place}")
    tower = model.get("vision_cfg")
    if not isinstance(tower, dict):
        return
    yield from stated("arch", values.word(tower.get("timm_model_name")), f"timm_model_name in {OPEN_CLIP}")
    width, per_head = values.count(tower.get("width"), 1 << 16), values.count(tower.get("head_width", 64))
    if width and per_head and width % per_head == 0:
        yield Statement("num_heads", width // per_head, f"vision_cfg in {OPEN_CLIP}")
    if "timm_model_name" not in tower:
        quick = model.get("quick_gelu") is True
        source = f"quick_gelu in {OPEN_CLIP}" + ("" if "quick_gelu" in model else ", which does not set it")
        yield Statement("activation", "quick_gelu" if quick else "gelu", source)
    yield from stated("image_size", values.size(tower.get("image_size")), f"vision_cfg in {OPEN_CLIP}")
