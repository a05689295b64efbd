"""What is known about a network beside its shapes, from the layout, the dialect and what is stated.

An architecture's name is believed about its heads only if its width is that of the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

from dse_monitor.checkpoints.archive import Archive
from dse_monitor.checkpoints.families.network import Heads, Hints, Stated
from dse_monitor.checkpoints.layouts.layout import Layout
from dse_monitor.checkpoints.options import ReadingOptions
from dse_monitor.checkpoints.recognition.dialects import Dialect

# What else tensors do not show, by config.json's names.
_FLAGS = ("downsample_in_first_stage", "downsample_in_bottleneck")


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
    stated = {**_of_the_code(layout), **stated}
    if dialect.eps_fixed:
        stated.pop("norm_eps", None)
    heads, size = stated.get("num_heads"), stated.get("image_size")
    details = {**dialect.details, **layout.details}
    details.update({key: archive.config[key] is True for key in _FLAGS if key in archive.config})
    return Hints(
        num_heads=options.num_heads,
        recorded_heads=None if heads is None else Heads(heads.value, heads.source),
        heads_by_width=layout.heads_by_width,
        heads_origin=f"the models of {layout.origin}",
        norm_eps=layout.norm_eps if layout.norm_eps is not None else dialect.norm_eps,
        image_size=None if size is None else size.value,
        stated=stated,
        code=f"the models of {layout.origin}" if layout.defines else "",
        details=details,
    )


def _of_the_code(layout: Layout) -> dict[str, Stated]:
    """What the training code prepares images with in every recipe of its own."""
    source = f"every recipe of {layout.origin}"
    given = {"mean": layout.mean, "std": layout.std}
    return {name: Stated(value, source) for name, value in given.items() if value}
