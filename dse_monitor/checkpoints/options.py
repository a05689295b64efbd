"""How a checkpoint is read: what the user says about its network, made once at the border. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from dse_monitor.flags import Flag
from dse_monitor.preprocessing import pair, read_size

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """What the user says about a checkpoint; everything not said is recognised.

    Raises:
        ValueError: a value that has no meaning, or two that exclude each other.
        NetworkError: the code of `network` is not there.
    """

    image_size: Annotated[
        tuple[int, int] | None, Flag(metavar="PIXELS", default="the network's own", read=read_size)
    ] = None
    """Size of the images the network sees in pixels: a side, or height x width, as 32x128."""
    layout: Annotated[str | None, Flag(metavar="NAME", default="recognised")] = None
    """Layout of the checkpoints; `dse-monitor layouts` lists them."""
    encoder: Annotated[str | None, Flag(metavar="NAME", default="the layout's")] = None
    """Which network of the file, where there are several (student, teacher, ...)."""
    arch: Annotated[str | None, Flag(metavar="MODEL", default="what the file names, or its shapes")] = None
    """timm model to build."""
    arch_option: Annotated[tuple[str, ...], Flag(metavar="KEY=VALUE")] = ()
    """Arguments the timm model is built with, such as depth=6 or img_size=64."""
    network: Annotated[str | None, Flag(metavar="FILE.py:FUNCTION", default="none")] = None
    """Your own network: a function in a file or module, or a plugin's name. It is run; the file never is."""
    network_code: Annotated[str | None, Flag(hidden=True)] = None
    """Version of the code of `network`, taken when this is made for the first time."""
    num_heads: Annotated[int | None, Flag(default="recognised")] = None
    """Attention heads, where shapes leave them open."""
    layer: Annotated[int | Literal["last"], Flag(metavar="N|last", default="last")] = "last"
    """Layer whose tokens are measured: a block of a transformer or a stage of other networks, from 1."""
    mean: Annotated[tuple[float, ...], Flag(metavar="NUMBER", default="the network's own")] = ()
    """Mean per channel that images are normalised with, of values in [0, 1]."""
    std: Annotated[tuple[float, ...], Flag(metavar="NUMBER", default="the network's own")] = ()
    """Standard deviation per channel that images are normalised with."""
    interpolation: Annotated[Interpolation | None, Flag(default="the network's own")] = None
    """Filter that resizes images."""

    def __post_init__(self) -> None:
        if self.image_size is not None:  # JSON keeps the side of a square, and lists
            object.__setattr__(self, "image_size", pair(self.image_size))
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be finite numbers, got {values}")
            object.__setattr__(self, name, values)
        if self.std and min(self.std) <= 0:
            raise ValueError(f"std must be above 0, since values are divided by it, got {self.std}")
        object.__setattr__(self, "arch_option", tuple(self.arch_option))
        for option in self.arch_option:
            if "=" not in option.strip("="):
                raise ValueError(f"arch_option must be KEY=VALUE, such as depth=6, got {option!r}")
        if self.network is not None:
            self._look_at_network(self.network)
        if self.layer != "last" and self.layer < 1:
            raise ValueError(f"layer must be last or a number from 1, got {self.layer}")

    def _look_at_network(self, network: str) -> None:
        """Have mistakes in its name show at once; paths hold in every process, wherever it runs."""
        from dse_monitor.checkpoints.network_code.locate import absolute, locate

        for name in ("arch", "arch_option", "num_heads"):
            if getattr(self, name):
                raise ValueError(f"network and {name} exclude each other: each says what is built")
        object.__setattr__(self, "network", absolute(network))
        if self.network_code is None:
            object.__setattr__(self, "network_code", locate(network).version)
