"""What a training code wrote about its network beside the tensors: arguments, configurations, config.json.

Only plain values are looked at; nothing of a configuration is executed or imported. An architecture's name is
believed about its heads only if its width is that of the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dse_monitor.checkpoints.archive import Archive
from dse_monitor.checkpoints.families.network import Heads, Hints, Stated
from dse_monitor.checkpoints.layouts.layout import Layout
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.reading.contents import attributes
from dse_monitor.checkpoints.recognition.dialects import Dialect

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
# What tensors do not show, by config.json's names.
BELIEVED = ("rope_theta", "hidden_act", "downsample_in_first_stage", "downsample_in_bottleneck")
HEAD_FIELDS = ("num_heads", "num_attention_heads", "n_heads", "nhead", "heads")


def hints(
    archive: Archive,
    layout: Layout,
    dialect: Dialect,
    stated: Mapping[str, Stated],
    options: ReadingOptions,
) -> Hints:
    """What is known about the network beside its shapes.

    Args:
        archive: the opened file; Hugging Face's config.json may lie beside its weights.
        layout: the recognised layout.
        dialect: the recognised dialect.
        stated: what statements.py found.
        options: the user's answers.
    """
    tree, beside = archive.tree, archive.config
    norm_eps = layout.norm_eps if layout.norm_eps is not None else dialect.norm_eps
    eps = None if dialect.eps_fixed else _number(beside.get("layer_norm_eps"))
    recorded = _recorded_heads(tree, beside)
    details = {**dialect.details, **layout.details}
    details.update({key: beside[key] for key in BELIEVED if key in beside})
    own = attributes(tree.get("backbone")) if isinstance(tree, Mapping) else {}
    side = _number(beside.get("image_size")) or _number(own.get("image_size"))
    size = None if side is None else (int(side), int(side))
    return Hints(
        num_heads=options.num_heads,
        recorded_heads=recorded,
        heads_by_width=layout.heads_by_width,
        heads_origin=f"the models of {layout.origin}",
        norm_eps=_number(own.get("norm_eps")) or eps or norm_eps,
        image_size=size,
        stated=stated,
        details=details,
    )


def _recorded_heads(tree: Any, beside: Mapping[str, Any]) -> Heads | None:
    count = _number(beside.get("num_attention_heads"))
    if count:
        return Heads(int(count), "config.json")
    for place, values in _settings(tree):
        for field in HEAD_FIELDS:
            count = _number(values.get(field))
            if count and float(count).is_integer():
                return Heads(int(count), f"{place}.{field} in the file")
    return None


def _settings(tree: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every group of settings in the file with its name, at most three levels deep."""
    if not isinstance(tree, Mapping):
        return
    level = [(key, attributes(tree[key])) for key in CONFIGURATIONS if key in tree]
    for _ in range(3):
        deeper: list[tuple[str, Mapping[str, Any]]] = []
        for place, values in level:
            yield place, values
            deeper += [
                (f"{place}.{key}", attributes(value)) for key, value in values.items() if attributes(value)
            ]
        level = deeper[:100]


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else None
