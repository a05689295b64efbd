"""What a checkpoint, a file beside it, or the user says about the network: values, each with where it stands.

Only plain values are looked at; nothing of a configuration is executed or imported.
"""

from __future__ import annotations

from dse_monitor.checkpoints.archive import Archive
from dse_monitor.checkpoints.families.network import Stated
from dse_monitor.checkpoints.options import ReadingOptions


def read(archive: Archive, options: ReadingOptions) -> dict[str, Stated]:
    """Everything stated, by name; what the user says comes before what is recorded.

    Names: "mean", "std", "interpolation", "crop_mode", "crop_pct", "resize", "image_size" (height, width),
    "num_heads", "arch".
    """
    return _asked(options)


def _asked(options: ReadingOptions) -> dict[str, Stated]:
    given = {
        "mean": options.mean,
        "std": options.std,
        "interpolation": options.interpolation,
        "image_size": options.image_size,
    }
    return {
        name: Stated(value, f"--{name.replace('_', '-')}")
        for name, value in given.items()
        if value not in (None, ())
    }
