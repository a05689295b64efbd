"""Settings that training codes keep in a checkpoint: arguments, hyperparameters, and fields of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dse_monitor.checkpoints.reading.contents import attributes
from dse_monitor.checkpoints.recognition.sources import hugging_face, values
from dse_monitor.checkpoints.recognition.sources.values import Statement, stated

# Where training codes keep their settings, from the top of the file.
CONFIGURATIONS = (
    "args",
    "config",
    "cfg",
    "hyper_parameters",
    "opt",
    "model_args",
    "backbone",
    "model_config",
)
DEPTH = 3  # levels of settings in settings
MOST = 100  # groups looked at on each level

HEAD_FIELDS = ("num_heads", "num_attention_heads", "n_heads", "nhead", "heads")
_STATISTICS = (
    ("mean", "std"),
    ("img_mean", "img_std"),
    ("image_mean", "image_std"),
    ("norm_mean", "norm_std"),
    ("normalize_mean", "normalize_std"),
    ("pixel_mean", "pixel_std"),
    ("data_mean", "data_std"),
    ("rgb_mean", "rgb_std"),  # DINOv3's crops
)
_IMAGE_SIZES = ("img_size", "image_size", "input_size")

# Parts of a model, or of a training, whose settings are none of the encoder's.
_OTHER_PARTS = frozenset(
    (
        "decoder", "predictor", "projector", "projection", "projection_head", "head", "heads", "neck", "loss",
        "criterion", "optimizer", "optim", "scheduler", "lr_scheduler", "text", "text_cfg", "text_config",
        "text_model", "logger", "trainer", "callbacks", "checkpoint", "decoder_kwargs", "predictor_kwargs",
        "probe", "linear_probe",
    )
)  # fmt: skip

# solo-learn normalises by the name of the data (solo/data/pretrain_dataloader.py); others are ImageNet's.
_SOLO_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet100": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# solo-learn builds vision transformers by size and method (solo/backbones/vit): those of MoCo v3 and MAE have
# twelve heads where others of the width have fewer, the rest are timm's.
_SOLO_WIDTHS = {"vit_tiny": 192, "vit_small": 384, "vit_base": 768, "vit_large": 1024, "vit_huge": 1280}
_SOLO_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
_SOLO_OWN_HEADS = {192: 12, 384: 12, 768: 12, 1024: 16, 1280: 16}
_SOLO_OWN = ("mocov3", "mae")


def read(tree: Any, sidecars: Mapping[str, Any]) -> Iterator[Statement]:
    """What the file's settings say, and those the training wrote beside it; the most specific first."""
    if not isinstance(tree, Mapping):
        return
    yield from _timm(tree)
    yield from _solo_learn(attributes(tree.get("hyper_parameters")), "hyper_parameters")
    yield from _solo_learn(attributes(sidecars.get("args.json")), "args.json")
    yield from _open_clip(attributes(sidecars.get("params.txt")))
    yield from _mae(attributes(tree.get("args")))
    yield from _dse_train(tree)
    yield from _lightly_train(attributes(tree.get("lightly_train")))
    for place, standing, group in _groups(tree):
        yield from _group(place, standing, group)


def _groups(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every group of settings with its name and its standing, the outer ones first."""
    level = [(key, attributes(tree[key])) for key in CONFIGURATIONS if key in tree]
    for depth in range(DEPTH):
        deeper: list[tuple[str, Mapping[str, Any]]] = []
        for place, group in level:
            yield place, f"settings at depth {depth}", group
            for key, value in list(group.items())[: 10 * MOST]:
                if key.lower() not in _OTHER_PARTS and (inner := attributes(value)):
                    deeper.append((f"{place}.{key[: values.MAX_WORD]}", inner))
        level = deeper[:MOST]


def _group(place: str, standing: str, group: Mapping[str, Any]) -> Iterator[Statement]:
    """One group's fields that are called the same in many codes."""
    for field in HEAD_FIELDS:
        found = values.count(group.get(field))
        yield from stated("num_heads", found, f"{place}.{field} in the file", standing, read_before=True)
    for mean, std in _STATISTICS:
        yield from hugging_face.normalisation(
            group.get(mean), group.get(std), mean, std, f"{place} in the file", standing
        )
    for field in _IMAGE_SIZES:
        yield from stated("image_size", values.size(group.get(field)), f"{place}.{field} in the file")
    for name, field, found in (
        ("norm_eps", "norm_eps", values.epsilon(group.get("norm_eps"))),
        ("norm_eps", "layer_norm_eps", values.epsilon(group.get("layer_norm_eps"))),
        ("activation", "act_layer", values.activation(group.get("act_layer"))),
        ("activation", "hidden_act", values.activation(group.get("hidden_act"))),
        ("in_chans", "in_chans", values.count(group.get("in_chans"), values.MAX_CHANNELS)),
    ):
        source = f"{place}.{field} in the file"
        yield from stated(name, found, source, standing, read_before=place == "backbone")


def _timm(tree: Mapping[str, Any]) -> Iterator[Statement]:
    """Timm's train.py: the model's name, and what its images were like.

    Where the arguments leave it open, timm takes what the model's pretrained configuration says.
    """
    args, arch = attributes(tree.get("args")), values.word(tree.get("arch"))
    if arch is None or "version" not in tree or "state_dict" not in tree:
        return
    yield Statement("arch", arch, "field 'arch' of the file")
    said: list[Statement] = []
    mean, std = values.numbers(args.get("mean")), values.numbers(args.get("std"))
    for name, field, found in (
        ("mean", "mean", mean),
        ("std", "std", std if std and min(std) > 0 else None),
        ("crop_mode", "crop_mode", values.word(args.get("crop_mode"))),
        ("interpolation", "interpolation", values.interpolation(args.get("interpolation"))),
        ("crop_pct", "crop_pct", values.share(args.get("crop_pct"))),
        ("image_size", "input_size", values.size(args.get("input_size"))),
        ("image_size", "img_size", values.size(args.get("img_size"))),
    ):
        said += stated(name, found, f"args.{field} in the file")
    inner = attributes(args.get("model_kwargs"))
    said += stated("activation", values.activation(inner.get("act_layer")), "args.model_kwargs in the file")
    yield from said
    given = {one.name for one in said}
    yield from (one for one in _published(arch) if one.name not in given)


def _published(arch: str) -> Iterator[Statement]:
    """What timm prepares images with for this model, unless its arguments say otherwise."""
    from timm.models import get_pretrained_cfg, is_model

    published = get_pretrained_cfg(arch) if is_model(arch) else None
    if published is not None:
        place = f"timm's configuration of {arch}, as its training takes it"
        yield from hugging_face.pretrained_cfg(published.to_dict(), place)


def _solo_learn(settings: Mapping[str, Any], place: str) -> Iterator[Statement]:
    method = values.word(settings.get("method"))
    if method is None:
        return
    inner = attributes(settings.get("backbone"))
    name = (
        values.word(inner.get("name"))
        or values.word(settings.get("backbone"))
        or values.word(settings.get("encoder"))
    )
    width = _SOLO_WIDTHS.get(name or "")
    table = _SOLO_OWN_HEADS if method.lower() in _SOLO_OWN else _SOLO_HEADS
    if width in table:
        source = f"backbone {name!r} of method {method!r} in {place}"
        yield Statement("heads_by_width", {width: table[width]}, source)
    data = attributes(settings.get("data"))
    dataset = values.word(data.get("dataset")) or values.word(settings.get("dataset"))
    known = _SOLO_STATISTICS.get(dataset or "")
    if known is not None:
        for part, found in zip(("mean", "std"), known, strict=True):
            yield Statement(part, found, f"dataset {dataset!r} in {place}")


def _open_clip(params: Mapping[str, Any]) -> Iterator[Statement]:
    """The parameters of a training of open_clip (open_clip_train/params.py), as text.

    A model whose name ends in "quickgelu" has that activation, others have it where it is forced.
    """
    model = params.get("model")
    if not isinstance(model, str) or "force_quick_gelu" not in params:
        return
    quick = params["force_quick_gelu"] == "True" or model.lower().endswith("quickgelu")
    yield Statement("activation", "quick_gelu" if quick else "gelu", f"model {model[:60]!r} in params.txt")


def _mae(args: Mapping[str, Any]) -> Iterator[Statement]:
    """The small model, which the code of arXiv 2510.17299 adds to MAE's own (models/mae/models_mae.py)."""
    if args.get("model") == "mae_vit_small_patch16":
        source = "args.model 'mae_vit_small_patch16' in the file, as the code of the DSE paper defines it"
        yield Statement("heads_by_width", {384: 6}, source)


def _dse_train(tree: Mapping[str, Any]) -> Iterator[Statement]:
    if tree.get("format") == "dse-train":
        images = attributes(tree.get("images"))
        yield from hugging_face.normalisation(
            images.get("mean"), images.get("std"), "mean", "std", "field 'images' of the file"
        )


def _lightly_train(settings: Mapping[str, Any]) -> Iterator[Statement]:
    images = attributes(settings.get("normalize_args"))
    yield from hugging_face.normalisation(
        images.get("mean"), images.get("std"), "mean", "std", "lightly_train.normalize_args in the file"
    )
