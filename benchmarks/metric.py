"""Time and memory of the metric beside a forward pass and beside the structure of the released code.

    python benchmarks/metric.py [--images 128 1024] [--device cuda] [--repeats 5] [--released-images 16]

The forward pass is ViT-S/16 at 224 pixels (timm, random weights) over as many images as are measured, 32 at
a time. Runs are interleaved and medians compared, so a busy machine slows both. The released structure is the
oracle of the tests: one k-means for each image and group, one SVD for each cluster and position; timed on few
images, scaled up.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor

from dse_monitor.metric import measure

ORACLE = Path(__file__).parents[1] / "tests" / "metric" / "released_structure.py"


def features_of(images: int, positions: int = 196, width: int = 384, device: str = "cpu") -> Tensor:
    """Features like a trained network's: few kinds of region per image, a common part, a falling spectrum."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, width + 1) ** -0.5
    kinds = torch.randn(40, width, generator=generator) * spectrum * 3
    present = torch.randint(40, (images, 5), generator=generator)
    region = torch.randint(5, (images, positions), generator=generator)
    tokens = torch.randn(images, positions, width, generator=generator).mul_(spectrum * 1.5)
    tokens += torch.randn(images, 1, width, generator=generator) * spectrum
    for start in range(0, images, 64):
        tokens[start : start + 64] += kinds[present[start : start + 64].gather(1, region[start : start + 64])]
    return tokens.add_(torch.randn(width, generator=generator)).to(device)


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall seconds of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(works: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each, measured in turns after one warm-up of each."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            taken = seconds(work, device)
            if repeat:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def released() -> Callable[[Tensor], object]:
    spec = importlib.util.spec_from_file_location("released_structure", ORACLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.measure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--released-images", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = options.device
    network = timm.create_model("vit_small_patch16_224").eval().to(device)
    pixels = torch.randn(32, 3, 224, 224, device=device)
    plain = released()
    few = features_of(options.released_images, device="cpu")

    def forward(images: int) -> None:
        with torch.inference_mode():
            for _ in range(images // 32):
                network.forward_features(pixels)

    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, 196 tokens of width 384")
    print(" images  metric s  forward s   ratio  released s  times  extra MB")
    for images in options.images:
        features = features_of(images, device=device)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        measure(features)
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        works = {"metric": lambda f=features: measure(f), "forward": lambda n=images: forward(n)}
        if device == "cpu":
            works["released"] = lambda: plain(few)
        times = interleaved(works, options.repeats, device)
        scaled = times.get("released", float("nan")) * images / options.released_images
        print(
            f"{images:7d} {times['metric']:9.3f} {times['forward']:10.3f} "
            f"{times['metric'] / times['forward']:7.1%} {scaled:11.2f} "
            f"{scaled / times['metric']:6.1f} {extra:9.0f}"
        )


if __name__ == "__main__":
    main()
