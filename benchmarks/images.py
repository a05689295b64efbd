"""How fast held-out images become pixels: decoded once, then opened from the cache.

Anchors: torchvision's Resize and CenterCrop on a fully decoded image, one thread; and reading the cache
file's bytes.

    python benchmarks/images.py [--count 256] [--repeats 3]
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision.transforms import v2

from dse_monitor import scenes
from dse_monitor.evaluation import images
from dse_monitor.preprocessing import Preprocessing

USUAL = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIZES = {"as in ImageNet, 500 x 375": (500, 375), "from a phone, 4000 x 3000": (4000, 3000)}


def main(count: int = 256, repeats: int = 3) -> None:
    """Print the table.

    Args:
        count: images decoded per measurement; a tenth of them for the large size.
        repeats: measurements, interleaved; the median is printed.
    """
    cores = len(os.sched_getaffinity(0))
    table = Table(title=f"images to 224 px pixels, {cores} cores, median of {repeats}")
    for column in ("source", "step", "images/s", "seconds for 2,048"):
        table.add_column(column, justify="left" if column in ("source", "step") else "right")
    with tempfile.TemporaryDirectory() as place:
        for title, shape in SIZES.items():
            number = count if shape[0] < 1000 else max(count // 10, images.MINIMUM_IMAGES)
            folder = write_photographs(Path(place) / title, number, shape)
            for step, rate in measure(folder, number, repeats, Path(place)).items():
                table.add_row(title, step, f"{rate:,.0f}", f"{2048 / rate:,.2f}")
    Console().print(table)


def write_photographs(folder: Path, count: int, shape: tuple[int, int]) -> Path:
    """JPEG files of scenes; a few different ones, for drawing is slower than decoding."""
    folder.mkdir()
    width, height = shape
    for index in range(count):
        if index < 8:
            pixels, _ = scenes.generate(index, width)
            Image.fromarray(pixels[:height]).save(folder / f"{index}.jpg", quality=90)
        else:
            os.link(folder / f"{index % 8}.jpg", folder / f"{index}.jpg")
    return folder


def measure(folder: Path, count: int, repeats: int, place: Path) -> dict[str, float]:
    """Images per second of each step."""
    transform = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    caches = iter(place / f"cache {folder.name} {i}" for i in range(10 * repeats))
    warm = next(caches)

    def full() -> None:
        for name in images.offered(folder)[0]:
            with Image.open(folder / name) as picture:
                np.asarray(transform(picture.convert("RGB")))

    def prepare(cache: Path, workers: int | None = None) -> images.ImageSet:
        return images.prepare(folder, USUAL, num_images=count, cache=cache, workers=workers)

    prepare(warm)
    (pixel_file,) = warm.glob("*.rgb")
    steps: dict[str, Callable[[], object]] = {
        "anchor: decode fully, torchvision, one thread": full,
        "first time, one thread": lambda: prepare(next(caches), 1),
        "first time, all cores": lambda: prepare(next(caches)),
        "later: cache checked and mapped": lambda: prepare(warm),
        "anchor: read the cache's bytes": pixel_file.read_bytes,
    }
    seconds: dict[str, list[float]] = {step: [] for step in steps}
    for _ in range(repeats):
        for step, run in steps.items():
            start = time.perf_counter()
            run()
            seconds[step].append(time.perf_counter() - start)
    return {step: count / statistics.median(values) for step, values in seconds.items()}


if __name__ == "__main__":
    tyro.cli(main)
