"""`dse-monitor scenes`: images for people who have none at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dse_monitor.cli.printing import progress
from dse_monitor.flags import Flag


@dataclass(frozen=True, kw_only=True)
class ScenesOptions:
    """Draw procedural scenes, for people without images at hand.

    Examples:
        dse-monitor scenes scenes/held-out --count 256 --seed 1
        dse-monitor scenes scenes/labelled --masks
    """

    folder: Annotated[Path, Flag(positional=True, metavar="DIR")]
    """Where the PNG files go; an interrupted call continues."""
    count: int = 1000
    """Number of scenes."""
    size: Annotated[int, Flag(metavar="PIXELS")] = 224
    """Side of a scene in pixels."""
    seed: int = 0
    """Another seed draws other scenes."""
    masks: bool = False
    """Also write segmentation masks: DIR/images and DIR/masks."""

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")


def scenes(options: ScenesOptions) -> int:
    """Draw what is missing."""
    from dse_monitor.scenes import write_folder

    with progress("scenes") as report:
        write_folder(
            options.folder,
            options.count,
            options.size,
            options.seed,
            options.masks,
            lambda done, total: report("drawing", done, total),
        )
    print(f"{options.count:,} scenes of {options.size} px in {options.folder}")
    return 0
