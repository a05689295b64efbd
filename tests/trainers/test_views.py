"""Random crops: shapes, certainty at the ends of probabilities, and where they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from dse_monitor.trainers.blocks.views import (
    Crop,
    MultiCrop,
    StrongCrop,
    byol_pair,
    dino_crops,
    plain_crop,
    to_tensor,
)
from dse_monitor.trainers.engine.data import seeded

PLAIN = {"jitter_probability": 0.0, "grey": 0.0, "flip": 0.0}


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def draw(view, image, key=0):
    with seeded(key):
        return view(image)


def test_dino_crops_come_in_the_order_the_loss_relies_on(image):
    views = MultiCrop(dino_crops(32, 16, (0.4, 1.0), (0.05, 0.4), 3))(image)
    assert [tuple(v.shape) for v in views.images] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
    assert {v.dtype for v in views.images} == {torch.uint8}
    first, second, *local = dino_crops(32, 16, (0.4, 1.0), (0.05, 0.4), 3)
    assert (first.blur, second.blur, local[0].blur) == (1.0, 0.1, 0.5)
    assert (first.solarise, second.solarise, local[0].solarise) == (0.0, 0.2, 0.0)


def test_view_is_the_box_it_reports(image):
    view = Crop(size=16, scale=(0.2, 0.8), interpolation="bilinear", **{**PLAIN, "flip": 1.0})
    with seeded(3):
        found = view.locate(image)
    top, left, height, width = found.box
    expected = image.crop((left, top, left + width, top + height)).resize((16, 16), Image.Resampling.BILINEAR)
    assert found.flipped
    assert torch.equal(found.image, to_tensor(ImageOps.mirror(expected)))


def test_scale_is_the_fraction_of_the_area(image):
    view = Crop(size=8, scale=(0.3, 0.5), **PLAIN)
    boxes = []
    for key in range(50):
        with seeded(key):
            boxes.append(view.locate(image).box)
    fractions = [height * width / (40 * 48) for _, _, height, width in boxes]
    assert 0.25 < min(fractions)
    assert max(fractions) < 0.55


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"grey": 1.0}, lambda x: x.convert("L").convert("RGB")),
        ({"solarise": 1.0}, lambda x: ImageOps.solarize(x, 128)),
        ({"blur": 1.0, "blur_radius": (1.5, 1.5)}, lambda x: x.filter(ImageFilter.GaussianBlur(1.5))),
    ],
)
def test_certain_steps_do_what_pillow_does(image, option, expected):
    square = image.resize((32, 32), Image.Resampling.BICUBIC)
    whole = {"size": 32, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), **PLAIN}
    seen = draw(Crop(**{**whole, **option}), square)
    assert torch.equal(seen, to_tensor(expected(square)))


def test_kernel_blur_keeps_the_mean_and_works_on_small_crops(image):
    view = Crop(size=8, scale=(1.0, 1.0), blur=1.0, blur_kernel=23, **PLAIN)
    assert draw(view, image).shape == (3, 8, 8)


def test_flipping_last_changes_nothing_but_the_order(image):
    first = Crop(size=16, scale=(1.0, 1.0), ratio=(1.2, 1.2), **{**PLAIN, "flip": 1.0})
    last = Crop(size=16, scale=(1.0, 1.0), ratio=(1.2, 1.2), flip_last=True, **{**PLAIN, "flip": 1.0})
    assert torch.equal(draw(first, image), draw(last, image))


def test_byol_pair_is_asymmetric():
    one, two = byol_pair(32)
    assert ((one.blur, one.solarise), (two.blur, two.solarise)) == ((1.0, 0.0), (0.1, 0.2))


def test_plain_crop_keeps_colours():
    colour = (10, 200, 90)
    seen = draw(plain_crop(16, (0.2, 1.0)), Image.new("RGB", (32, 32), colour))
    assert torch.equal(seen, torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16))


def test_strong_crop_is_seeded_and_in_unit_range_before_erasing(image):
    strong = StrongCrop(size=16, scale=(0.25, 1.0), erase=0.0)
    assert torch.equal(draw(strong, image, 5), draw(strong, image, 5))
    seen = draw(strong, image, 5)
    assert seen.dtype == torch.float32
    assert 0 <= seen.min() <= seen.max() <= 1


def test_strong_crop_never_takes_an_operation_twice(image):
    capped = StrongCrop(size=16, scale=(0.25, 1.0), randaugment="rand-m9-mmax20")
    assert capped._augment.ops[0].magnitude_max == 20
    augment, taken = StrongCrop(size=16, scale=(0.25, 1.0))._augment, []
    augment.ops = [lambda x, i=i: taken.append(i) or x for i in range(3)]
    augment.choice_weights = augment.choice_weights[:3] * len(augment.choice_weights) / 3
    for key in range(40):
        with seeded(key):
            augment(image)
    pairs = set(zip(taken[0::2], taken[1::2], strict=True))
    assert len(pairs) == 6
    assert all(a != b for a, b in pairs)


def test_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="bicubic"):
        Crop(size=8, scale=(0.2, 1.0), interpolation="nearest")
