"""What a function named by ``--network`` returns: a network of one's own and how it is used. No torch.

Shapes: B images, C channels, H x W pixels, N tokens per image, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse_monitor.preprocessing import CROP_MODES, INTERPOLATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dse_monitor.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class OwnNetwork:
    """A network that no checkpoint reader knows, and what its tensors do not say of it.

        def build():
            net = MyNet(depth=4)
            return OwnNetwork(module=net, tokens=lambda net, images: net.forward_features(images)[:, 1:])

    The module is built anew for each checkpoint, without its weights: those come from the file, strictly by
    name. docs/own_networks.md says what is checked.

    Attributes:
        module: the network.
        tokens: called with the module and images [B, C, H, W], and with the layer where `layers` is given
            (from 1; None for the last); returns the patch tokens [B, N, D], a map [B, D, rows, columns], or
            `dse_monitor.tokens.Tokens`. None: `forward_features` of the module, or else its `forward`.
        channels: C; None: what the module's first convolution takes.
        image_size: height and width, or a side, of the images the network sees, px; None: 224.
        any_size: whether other sizes are possible (``--image-size``).
        grid: rows and columns of the tokens; None: those of the map, or a square.
        mean: one per channel, or one for all, subtracted from values in [0, 1]; None: ImageNet's, for three.
        std: the same, by which they are divided.
        interpolation: filter that resizes pictures (Pillow's name); None: bicubic.
        crop_mode: "center" or "squash", see docs/watching.md; None: "center".
        resize: height and width that a picture is made to cover before its centre is cut out, px.
        transform: called with the path of an image, returns what the network sees of it, floating-point
            [C, H, W]; then nothing else is done to images, and mean, std and the like have no meaning.
        suffixes: of the files that `transform` reads, such as ``(".npy",)``; empty: all.
        prefix: where the module's tensors are in the state dict (``"encoder."``), or in the file
            (``"teacher/backbone."``); None: wherever all of them are.
        ignore: beginnings of names of tensors below that prefix that belong to no part of the module, such as
            ``("decoder.",)``; any other such tensor is an error.
        layers: layers that `tokens` can return, counted from 1 (``--layer``).
        convolutional: whether channels-last memory is worth it on a GPU.

    Raises:
        TypeError, ValueError: a field has no meaning; names it, and what is expected.
    """

    module: nn.Module
    tokens: Callable[..., Tensor | Tokens] | None = None
    channels: int | None = None
    image_size: int | tuple[int, int] | None = None
    any_size: bool = False
    grid: tuple[int, int] | None = None
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None
    interpolation: str | None = None
    crop_mode: str | None = None
    resize: tuple[int, int] | None = None
    transform: Callable[[Path], Any] | None = None
    suffixes: tuple[str, ...] = ()
    prefix: str | None = None
    ignore: tuple[str, ...] = ()
    layers: int = 0
    convolutional: bool = False

    def __post_init__(self) -> None:
        for name in ("tokens", "transform"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected a function")
        for name in ("suffixes", "ignore"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(each, str) and each for each in value):
                raise TypeError(f"{name} is {value!r}, expected a tuple of texts such as ('one',)")
            object.__setattr__(self, name, tuple(value))
        if isinstance(self.image_size, int) and not isinstance(self.image_size, bool):
            object.__setattr__(self, "image_size", (self.image_size, self.image_size))
        for name, what in (
            ("image_size", "(height, width)"),
            ("resize", "(height, width)"),
            ("grid", "(rows, columns)"),
        ):
            if (pair := getattr(self, name)) is not None:
                object.__setattr__(self, name, _pair(name, pair, what))
        for name in ("mean", "std"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _numbers(name, value))
        if self.channels is not None and not _is_count(self.channels):
            raise ValueError(f"channels is {self.channels!r}, expected a whole number from 1")
        if self.layers and not (_is_count(self.layers) and self.tokens is not None):
            raise ValueError(
                f"layers is {self.layers!r}, expected a number from 1, and tokens= that takes a layer"
            )
        for name, words in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
            if getattr(self, name) not in (None, *words):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(words)}")
        if self.transform is not None:
            self._check_transform()
        elif self.suffixes:
            raise ValueError(
                "suffixes are those of the files that transform= reads, and there is no transform"
            )

    def _check_transform(self) -> None:
        idle = [
            n for n in ("mean", "std", "interpolation", "crop_mode", "resize") if getattr(self, n) is not None
        ]
        if idle:
            raise ValueError(
                f"{' and '.join(idle)} would not be used, since transform= does all of it; leave out"
            )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _pair(name: str, value: Any, what: str) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(map(_is_count, value)):
        raise ValueError(f"{name} is {value!r}, expected {what} in whole numbers from 1")
    return value[0], value[1]


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    if not values or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{name} is {value!r}, expected one number per channel, or one for all")
    return tuple(float(number) for number in values)
