"""Random views: one frozen description per crop, with every option the sixteen methods name.

A method's ``views()`` returns :class:`MultiCrop`, or a callable of its own built from :class:`Crop`. All
draws come from the global generators (torch's; RandAugment and random erasing use Python's and numpy's too),
which the data loader seeds for each image. The steps are called one by one rather than through
``v2.Compose``, whose bookkeeping costs more than the image operations at 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from dse_monitor.trainers.method import IMAGENET_MEAN, Views

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_SOLARISE_FROM = 128


class Located(NamedTuple):
    """A view and where it came from.

    Attributes:
        image: uint8 [3, size, size].
        box: (top, left, height, width) in pixels of the original image.
        flipped: whether it was mirrored.
    """

    image: Tensor
    box: tuple[int, int, int, int]
    flipped: bool


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One random view. Order: crop, flip, jitter, greyscale, blur, solarise.

    Attributes:
        size: side of the result, pixels.
        scale: range of the area taken, as a fraction of the image's.
        ratio: range of the aspect ratio.
        interpolation: ``bicubic`` or ``bilinear``.
        flip: probability of a horizontal flip.
        flip_last: flip at the end, as MoCo v2, MoCo v3, SimSiam, DenseCL, MEC and ReSA do.
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_probability: probability of the colour jitter.
        grey: probability of greyscale.
        blur: probability of a Gaussian blur.
        blur_radius: range of its standard deviation, pixels.
        blur_kernel: 0 for PIL's blur; a side in pixels for a sampled kernel of that size (BYOL's 23).
        solarise: probability of inverting everything at or above 128.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    flip_last: bool = False
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    blur_radius: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int = 0
    solarise: float = 0.0

    def __post_init__(self) -> None:
        if self.interpolation not in _RESAMPLING:
            raise ValueError(f"interpolation is 'bicubic' or 'bilinear', got {self.interpolation!r}")

    def __call__(self, image: Image.Image) -> Tensor:
        """A view of an RGB image: uint8 [3, size, size]."""
        return self.locate(image).image

    def locate(self, image: Image.Image) -> Located:
        """A view that remembers its place (VICRegL's location matching)."""
        top, left, height, width = RandomResizedCrop.get_params(
            image,  # pyright: ignore[reportArgumentType]  annotated for tensors, takes images
            list(self.scale),
            list(self.ratio),
        )
        view = image.crop((left, top, left + width, top + height))
        view = view.resize((self.size, self.size), _RESAMPLING[self.interpolation])
        flipped = False
        if not self.flip_last and (flipped := _chance(self.flip)):
            view = ImageOps.mirror(view)
        if _chance(self.jitter_probability):
            view = self._jittered(view)
        if _chance(self.grey):
            view = view.convert("L").convert("RGB")
        if _chance(self.blur):
            view = self._blurred(view)
        if _chance(self.solarise):
            view = ImageOps.solarize(view, _SOLARISE_FROM)
        if self.flip_last and (flipped := _chance(self.flip)):
            view = ImageOps.mirror(view)
        return Located(to_tensor(view), (top, left, height, width), flipped)

    def _jittered(self, view: Image.Image) -> Image.Image:
        b, c, s, h = self.jitter
        draws = ColorJitter.get_params(
            [max(0.0, 1 - b), 1 + b], [max(0.0, 1 - c), 1 + c], [max(0.0, 1 - s), 1 + s], [-h, h]
        )
        steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        for i in draws[0].tolist():
            view = steps[i](view, draws[1 + i])
        return view

    def _blurred(self, view: Image.Image) -> Image.Image:
        radius = float(torch.empty(()).uniform_(*self.blur_radius))
        if self.blur_kernel:
            # reflection at the border limits the kernel on small crops; beyond three sigma nothing is lost
            side = min(self.blur_kernel, 2 * (self.size - 1) + 1)
            return TF.gaussian_blur(view, [side, side], [radius, radius])  # pyright: ignore
        return view.filter(ImageFilter.GaussianBlur(radius))


@dataclass(frozen=True, kw_only=True)
class StrongCrop:
    """Mugs' strong view: flip, RandAugment, bicubic random resized crop, random erasing with pixel noise.

    Attributes:
        size: side of the result, pixels.
        scale: range of the area taken.
        randaugment: timm's configuration string.
        erase: probability of random erasing.
    """

    size: int
    scale: tuple[float, float]
    randaugment: str = "rand-m9-mstd0.5-inc1"
    erase: float = 0.25

    def __call__(self, image: Image.Image) -> Tensor:
        """A view of an RGB image: float [3, size, size] in [0, 1] but for the noise where it was erased."""
        if _chance(0.5):
            image = ImageOps.mirror(image)
        image = self._augment(image)
        top, left, height, width = RandomResizedCrop.get_params(
            image,  # pyright: ignore[reportArgumentType]
            list(self.scale),
            [3 / 4, 4 / 3],
        )
        view = image.crop((left, top, left + width, top + height))
        view = view.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return self._erasing(to_tensor(view).float() / 255)

    @cached_property
    def _augment(self) -> Any:
        settings = {
            "translate_const": int(0.45 * self.size),
            "img_mean": tuple(min(255, round(255 * x)) for x in IMAGENET_MEAN),
        }
        if "mmax" not in self.randaugment:
            # at 10, one draw in forty, posterising would keep 0 bits, which Pillow refuses
            settings["magnitude_max"] = 9.999
        augment: Any = rand_augment_transform(self.randaugment, settings)
        # sail-sg/mugs never takes the same operation twice; timm's own may, unless they have weights
        augment.choice_weights = np.full(len(augment.ops), 1 / len(augment.ops))
        return augment

    @cached_property
    def _erasing(self) -> RandomErasing:
        return RandomErasing(probability=self.erase, mode="pixel", device="cpu")


@dataclass(frozen=True)
class MultiCrop:
    """Several crops of one image, in the order given; the usual ``Method.views()``."""

    crops: Sequence[Crop | StrongCrop]

    def __call__(self, image: Image.Image) -> Views:
        """One view per crop."""
        return Views([crop(image) for crop in self.crops])


def dino_crops(
    size: int,
    local_size: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    local_crops: int,
    solarise: float = 0.2,
) -> list[Crop]:
    """Two global and several local crops with DINO's photometry (DINO, EsViT; iBOT and Mugs' weak views).

    Blur with probability 1 on the first global crop, 0.1 on the second, 0.5 on locals; solarisation on the
    second only.
    """
    return [
        Crop(size=size, scale=global_scale, blur=1.0),
        Crop(size=size, scale=global_scale, blur=0.1, solarise=solarise),
        *[Crop(size=local_size, scale=local_scale, blur=0.5) for _ in range(local_crops)],
    ]


def dino_views(recipe: Any) -> MultiCrop:
    """The views of DINO, EsViT and iBOT: two global crops, then the local ones.

    Args:
        recipe: must have ``image_size``, ``local_size``, ``global_scale``, ``local_scale`` and
            ``local_crops``.
    """
    r = recipe
    return MultiCrop(dino_crops(r.image_size, r.local_size, r.global_scale, r.local_scale, r.local_crops))


def byol_pair(size: int, scale: tuple[float, float] = (0.08, 1.0), **options: Any) -> list[Crop]:
    """BYOL's asymmetric pair: always blurred; blurred with 0.1 and solarised with 0.2.

    With their own ``options`` this is BYOL, Barlow Twins, VICReg, MoCo v3 and MEC.
    """
    return [
        Crop(size=size, scale=scale, blur=1.0, **options),
        Crop(size=size, scale=scale, blur=0.1, solarise=0.2, **options),
    ]


def moco_v2_crop(size: int) -> Crop:
    """MoCo v2's view: saturation 0.4, blur with 0.5, flip last, bilinear (SimSiam, DenseCL)."""
    return Crop(
        size=size,
        scale=(0.2, 1.0),
        interpolation="bilinear",
        jitter=(0.4, 0.4, 0.4, 0.1),
        blur=0.5,
        flip_last=True,
    )


def plain_crop(
    size: int, scale: tuple[float, float], *, interpolation: str = "bicubic", flip: float = 0.5
) -> Crop:
    """Crop and flip only (MAE, I-JEPA with ``flip=0``, ReSA's weak view)."""
    return Crop(
        size=size, scale=scale, interpolation=interpolation, flip=flip, jitter_probability=0.0, grey=0.0
    )


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 [3, h, w]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _chance(probability: float) -> bool:
    """True with this probability; certain outcomes draw nothing."""
    if probability <= 0:
        return False
    return probability >= 1 or torch.rand(()).item() < probability
