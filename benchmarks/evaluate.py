"""What evaluating a checkpoint costs beside the bare forward pass of the same images, stage by stage.

The first evaluation decodes the images, the following ones find them cached, as in a watched run. The bare
pass is the timm network alone on normalised images already on the device.

    python benchmarks/evaluate.py [--arch vit_small_patch16_224] [--num-images 256] [--device auto] [--repeats
    3]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
import tyro
from rich.console import Console
from rich.table import Table

from dse_monitor import scenes
from dse_monitor.encoder import MICRO_BATCH, PRECISIONS
from dse_monitor.evaluation.config import EvaluationConfig, Placement
from dse_monitor.evaluation.evaluator import Evaluator


def main(
    arch: str = "vit_small_patch16_224",
    num_images: int = 256,
    device: str = "auto",
    precision: str = "auto",
    repeats: int = 3,
) -> None:
    """Print the table.

    Args:
        arch: timm model.
        num_images: images measured; 2,048 is the authors' recipe and needs a GPU to be quick.
        device: where.
        precision: of the forward pass.
        repeats: evaluations after the first, interleaved with bare forward passes; medians are printed.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pictures = scenes.write_folder(folder / "pictures", num_images, size=256)
        checkpoint, model = write_checkpoint(folder / "checkpoint_0001.pth", arch)
        evaluator = Evaluator(
            EvaluationConfig(images=pictures, num_images=num_images, precision=precision),
            Placement(cache=str(folder / "cache"), device=device, maps=str(folder / "dse")),
        )
        first = evaluator(checkpoint)
        if first.status != "scored":
            raise SystemExit(first.reason)
        model = model.to(evaluator.device)
        later, bare = [], []
        for _ in range(repeats):
            later.append(evaluator(checkpoint).seconds)
            bare.append(forward_seconds(model, num_images, evaluator.device, evaluator.precision))
        print_table(arch, num_images, evaluator, first.seconds, later, statistics.median(bare))


def write_checkpoint(path: Path, arch: str, seed: int = 0) -> tuple[Path, torch.nn.Module]:
    """A freshly drawn network as our trainers write it, and the network itself."""
    torch.manual_seed(seed)
    model = timm.create_model(arch, num_classes=0).eval()
    weights = {"teacher.backbone." + name: value for name, value in model.state_dict().items()}
    backbone = {"name": arch, "kwargs": {"num_classes": 0}, "image_size": 224, "num_heads": None}
    content = {"format": "dse-train", "schema": 1, "method": "dino", "epoch": 1, "step": 1}
    content |= {"backbone": backbone, "evaluated": "teacher.backbone.", "model": weights}
    torch.save(content | {"optimizer": {}, "scaler": {}, "rng": {}, "recipe": {}}, path)
    return path, model


@torch.inference_mode()
def forward_seconds(model: torch.nn.Module, count: int, device: torch.device, precision: str) -> float:
    """Seconds of the bare forward pass of `count` images."""
    size = min(MICRO_BATCH[device.type], count)
    images = torch.randn(size, 3, 224, 224, device=device)
    half = precision != "float32"
    start = time.perf_counter()
    with torch.autocast(device.type, dtype=PRECISIONS[precision]) if half else nullcontext():
        for done in range(0, count, size):
            model.forward_features(images[: count - done])  # pyright: ignore[reportCallIssue]
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def print_table(
    arch: str,
    count: int,
    evaluator: Evaluator,
    first: dict[str, float],
    later: list[dict[str, float]],
    bare: float,
) -> None:
    table = Table(title=f"{arch}, {count:,} images, {evaluator.device}, {evaluator.precision}, seconds")
    for column in ("stage", "first", "later", "later / bare forward"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in first:
        seconds = statistics.median(run[stage] for run in later)
        table.add_row(stage, f"{first[stage]:.2f}", f"{seconds:.2f}", f"{seconds / bare:.2f}")
    table.add_row("bare forward", "", f"{bare:.2f}", "1.00")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
