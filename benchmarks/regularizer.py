"""Time of the regulariser, forward and backward, beside lightly's and within a training step.

    python benchmarks/regularizer.py [--images 32] [--repeats 5]

lightly (1.6 or later) is compared where it is installed. The step is a DINO-like one of ViT-S/16: the forward
pass of a teacher over two views of 224 pixels, that of a student over these and eight of 96, and its backward
pass; the term is taken of the patch tokens of one large view. Runs are interleaved and medians compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor

from dse_monitor.metric import DSERegularizer


def interleaved(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, measured in turns after one warm-up of each."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def forward_and_backward(term: Callable[[Tensor], Tensor], features: Tensor) -> None:
    features.grad = None
    term(features).backward()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    student = timm.create_model("vit_small_patch16_224", dynamic_img_size=True)
    teacher = timm.create_model("vit_small_patch16_224").eval()
    large, small = torch.randn(options.images, 3, 224, 224), torch.randn(options.images, 3, 96, 96)
    with torch.no_grad():
        features = student.forward_features(large)[:, 1:]
    features = features.clone().requires_grad_()
    ours = DSERegularizer()
    works: dict[str, Callable[[], object]] = {"ours": lambda: forward_and_backward(ours, features)}
    try:
        from lightly.loss.regularizer import DSERegularizer as LightlyRegularizer

        theirs = LightlyRegularizer(weight=1e-3)
        works["lightly"] = lambda: forward_and_backward(theirs, features)
    except ImportError:
        print("lightly is not installed: no comparison with it")
    times = interleaved(works, options.repeats)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {tuple(features.shape)}")
    for name, taken in times.items():
        print(f"{name:8} {taken:8.3f} s  {taken / times['ours']:6.1f} times ours")

    def step() -> float:
        """A step without the term; backward for each view, so that graphs are not held together."""
        start = time.perf_counter()
        with torch.no_grad():
            for _ in range(2):
                teacher.forward_features(large)
        for view in [large] * 2 + [small] * 8:
            student.zero_grad(set_to_none=True)
            student.forward_features(view)[:, 0].square().mean().backward()
        return time.perf_counter() - start

    taken = statistics.median(step() for _ in range(options.repeats))
    print(f"a step without the term {taken:.2f} s; with it {(taken + times['ours']) / taken:.3f} times")


if __name__ == "__main__":
    main()
