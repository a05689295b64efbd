"""Images per second of one training step: ours beside lightly's own example loop, on the same views.

``python benchmarks/trainers.py [--size mini|small] [--batch 16] [--rounds 5]`` prints one table. Network,
batch and precision are the same; rounds of the two are interleaved and medians reported, so that a busy
machine slows both alike. The views are drawn beforehand, and the augmentations timed apart; normalising
them is part of both steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    # as a script, this file would hide the package of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.lightly_loops import LOOPS
from trainers import engine
from trainers.methods import load
from trainers.settings import Settings

SIZES = {"mini": {}, "small": {"backbone": "vit_small_patch16_224", "image_size": 224, "local_size": 96}}


def ours(name: str, recipe: Any, batch: int) -> tuple[Callable[[], None], Callable[[], list[Tensor]], float]:
    """One engine step on fixed views, what normalises these, and images per second of the augmentations."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data="scenes", out=Path(folder), scenes=batch, device="cpu", workers=0)
        trainer = engine.Trainer(name, load(name), recipe, settings, torch.device("cpu"))
        trainer.report.close()
    next(iter(trainer.loader))  # draws the scenes
    then = time.perf_counter()
    drawn = next(iter(trainer.loader))
    views_per_second = batch / (time.perf_counter() - then)
    progress = trainer._progress()

    def step() -> None:
        trainer._optimise(iter([drawn]), progress)

    return step, lambda: trainer._received(drawn).images, views_per_second


def seconds(step: Callable[[], None]) -> float:
    then = time.perf_counter()
    step()
    return time.perf_counter() - then


def compare(name: str, changes: dict[str, Any], batch: int, rounds: int) -> list[str]:
    recipe = load(name).recipe_type.tiny()
    recipe = dataclasses.replace(recipe, batch_size=batch, **changes)  # pyright: ignore[reportArgumentType]
    mine, normalised, drawn = ours(name, recipe, batch)
    images = normalised()
    loop = LOOPS[name](recipe, images)

    def theirs() -> None:
        images[:] = normalised()  # the engine's step does so too; lightly's transforms do it as they draw
        loop()

    for step in (mine, theirs):
        step()  # the first call allocates
    times = [(seconds(mine), seconds(theirs)) for _ in range(rounds)]
    us, them = (batch / statistics.median(column) for column in zip(*times, strict=True))
    return [name, f"{us:.1f}", f"{them:.1f}", f"{us / them:.2f}", f"{drawn:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=sorted(LOOPS), default=sorted(LOOPS))
    parser.add_argument("--size", choices=sorted(SIZES), default="mini")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    heading = ("method", "ours img/s", "lightly img/s", "ratio", "our views/s")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {chosen.batch}, {chosen.size}"
    )
    for name in ("", *chosen.methods):
        row = compare(name, SIZES[chosen.size], chosen.batch, chosen.rounds) if name else heading
        print("  ".join(f"{cell:>15}" for cell in row), flush=True)


if __name__ == "__main__":
    main()
