"""Images per second of one training step: ours beside lightly's own example loop, on the same views.

``python benchmarks/trainers.py [--size mini|small] [--batch 16] [--rounds 5]`` prints one table. Network,
batch and precision are the same; rounds of the two are interleaved and medians reported, so that a busy
machine slows both alike. The views are drawn beforehand, and the augmentations timed apart.
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
from PIL import Image
from torch import Tensor, nn

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # as a script, this file would hide the package of the same name

from dse_monitor import scenes
from trainers import backbones, engine
from trainers.methods import load
from trainers.settings import Settings

SIZES = {"mini": {}, "small": {"backbone": "vit_small_patch16_224", "image_size": 224, "local_size": 96}}


def ours(name: str, recipe: Any, batch: int) -> tuple[Callable[[], None], list[Tensor], float]:
    """One engine step on fixed views, those views, and images per second of the augmentations."""
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

    return step, trainer._received(drawn).images, views_per_second


def lightly_dino(recipe: Any, images: list[Tensor]) -> Callable[[], None]:
    """One step as in lightly's DINO example: one forward per view, lightly's head, loss and EMA, AdamW."""
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum

    spec = backbones.describe(recipe.backbone, recipe.image_size)
    widths = (spec.width, recipe.head_hidden, recipe.head_bottleneck, recipe.prototypes)

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbones.build(spec)
            self.head = DINOProjectionHead(*widths)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(backbones.features(self.backbone, x).pooled)

    student, momentum = Student(), Student().requires_grad_(False)
    momentum.load_state_dict(student.state_dict())
    criterion = DINOLoss(output_dim=recipe.prototypes, warmup_teacher_temp_epochs=5)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)

    def step() -> None:
        update_momentum(student.backbone, momentum.backbone, m=0.99)
        update_momentum(student.head, momentum.head, m=0.99)
        with torch.no_grad():
            targets = [momentum(view) for view in images[:2]]
        loss = criterion(targets, [student(view) for view in images], epoch=0)
        loss.backward()
        student.head.cancel_last_layer_gradients(current_epoch=0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_views_per_second(recipe: Any, batch: int) -> float:
    """Images per second of lightly's DINO transform with the same crops."""
    from lightly.transforms.dino_transform import DINOTransform

    transform = DINOTransform(
        global_crop_size=recipe.image_size,
        global_crop_scale=recipe.global_scale,
        local_crop_size=recipe.local_size,
        local_crop_scale=recipe.local_scale,
        n_local_views=recipe.local_crops,
    )
    images = [Image.fromarray(scenes.generate(i, recipe.image_size)[0]) for i in range(batch)]
    then = time.perf_counter()
    for image in images:
        transform(image)
    return batch / (time.perf_counter() - then)


# Methods both have: add a step function here and it is compared.
LIGHTLY = {"dino": (lightly_dino, lightly_views_per_second)}


def seconds(step: Callable[[], None]) -> float:
    then = time.perf_counter()
    step()
    return time.perf_counter() - then


def compare(name: str, changes: dict[str, Any], batch: int, rounds: int) -> list[str]:
    recipe = load(name).recipe_type.tiny()
    recipe = dataclasses.replace(recipe, batch_size=batch, **changes)  # pyright: ignore[reportArgumentType]
    build, views = LIGHTLY[name]
    mine, images, drawn = ours(name, recipe, batch)
    theirs = build(recipe, images)
    for step in (mine, theirs):
        step()  # the first call allocates
    times = [(seconds(mine), seconds(theirs)) for _ in range(rounds)]
    us, them = (batch / statistics.median(column) for column in zip(*times, strict=True))
    return [
        name,
        f"{us:.1f}",
        f"{them:.1f}",
        f"{us / them:.2f}",
        f"{drawn:.0f}",
        f"{views(recipe, batch):.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=sorted(LIGHTLY), default=sorted(LIGHTLY))
    parser.add_argument("--size", choices=sorted(SIZES), default="mini")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    heading = ("method", "ours img/s", "lightly img/s", "ratio", "our views/s", "lightly views/s")
    rows = [compare(name, SIZES[chosen.size], chosen.batch, chosen.rounds) for name in chosen.methods]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {chosen.batch}, {chosen.size}"
    )
    for row in [heading, *rows]:
        print("  ".join(f"{cell:>15}" for cell in row))


if __name__ == "__main__":
    main()
