"""Everything that is asked of a GPU, in one call: metric, evaluation, regulariser, agreement with the CPU.

    python benchmarks/gpu.py > gpu.txt                 # an H100 or H200 with sixteen cores, a few minutes
    python benchmarks/gpu.py --device cpu --images 16 --evaluated 16 --archs vit_tiny_patch16_224 --batch 4

Medians of interleaved runs after one warm-up. The released structure (one k-means for each image and group,
one SVD for each cluster and position; the oracle of the tests) runs on few images and is scaled up. Needs
torch, timm and this package only.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.evaluate import forward_seconds, write_checkpoint
from benchmarks.metric import features_of, interleaved, released
from dse_monitor import scenes
from dse_monitor.evaluation.config import EvaluationConfig, Placement
from dse_monitor.evaluation.evaluator import Evaluator
from dse_monitor.metric import DSERegularizer, PseudoLabels, clustering, measure, spectra
from dse_monitor.metric.measurement import as_tokens, blocks, draw_chance
from dse_monitor.trainers.engine import trainer as engine
from dse_monitor.trainers.methods import load
from dse_monitor.trainers.settings import Settings

POSITIONS, WIDTH = 196, 384  # of ViT-S/16 at 224 px


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--images", type=int, default=1024, help="of the metric alone")
    parser.add_argument("--evaluated", type=int, default=2048, help="images of a whole evaluation")
    parser.add_argument("--archs", nargs="+", default=["vit_small_patch16_224", "vit_large_patch16_224"])
    parser.add_argument("--batch", type=int, default=32, help="images of a training step")
    parser.add_argument("--released-images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {name}, {os.cpu_count()} cores")
    decompositions(device, options.repeats)
    metric(device, options.images, options.released_images, options.repeats)
    agreement(device, min(options.images, 64))
    for arch in options.archs:
        evaluation(device, arch, options.evaluated, options.repeats)
    regularizer(device, options.batch, options.repeats)
    step(device, options.archs[0], options.batch, options.repeats)


def row(what: str, value: str, limit: str = "") -> None:
    print(f"{what:58} {value:>14} {limit and '  wanted ' + limit}", flush=True)


def decompositions(device: torch.device, repeats: int) -> None:
    """What eigenvalues cost, for torch has served batches of them well and badly over time."""
    row("decomposes larger matrices one by one", str(spectra._loops(device)))
    for count, size in ((512, 72), (64, 384)):
        matrices = torch.randn(count, size, size, dtype=torch.float64, device=device)
        gram = matrices @ matrices.mT
        works = {"values": lambda g=gram: spectra.root_values(g)}
        taken = interleaved(works, repeats, device.type)["values"]
        row(f"roots of {count} matrices of {size} rows", f"{1e3 * taken:.1f} ms")


def metric(device: torch.device, images: int, few: int, repeats: int) -> None:
    """The metric beside the network's bfloat16 forward pass and beside the released structure."""
    features = features_of(images).to(device)
    some = features_of(few).to(device)
    network = timm.create_model("vit_small_patch16_224").eval().to(device)
    plain = released()
    works: dict[str, Callable[[], object]] = {
        "metric": lambda: measure(features),
        "forward": lambda: forward_seconds(network, images, device, "bfloat16"),
    }
    taken = interleaved(works, repeats, device.type)
    taken |= interleaved({"released": lambda: plain(some)}, min(repeats, 2), device.type)
    scaled = taken["released"] * images / few
    shape = f"{images} x {POSITIONS} x {WIDTH}"
    row(f"metric, {shape}", f"{taken['metric']:.3f} s")
    row("  forward pass of ViT-S/16 in bfloat16", f"{taken['forward']:.3f} s")
    row("  released structure, scaled up", f"{scaled:.2f} s")
    row("  times faster than that", f"{scaled / taken['metric']:.0f} x", ">= 100 x on a GPU, 5 x on a CPU")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        measure(features)
        extra = (torch.cuda.max_memory_allocated(device) - held) / features.nbytes
        row("  peak extra memory / features", f"{extra:.2f} x")
        row("  waits for the device", str(_waits(lambda: measure(features))))


def _waits(work: Callable[[], object]) -> int:
    """How often the host waited for the device in one call."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len(found)


def agreement(device: torch.device, images: int) -> None:
    """Largest relative difference of a component between this device and the CPU, for the same clusters."""
    features = features_of(images)
    tokens, _ = as_tokens(features, normalize=True)
    chance = draw_chance(features.shape, 8, 3, 24, 0)
    found = [clustering.kmeans(points, chance.groups[which]) for which, points in blocks(tokens, 8)]
    given = PseudoLabels(
        clustering.kmeans(tokens, chance.local).labels,
        [labels for part in found for labels in part.labels],
        [centroids for part in found for centroids in part.centroids],
        chance.permutation,
    )
    for title, labels in (("same clusters", given), ("its own clusters", None)):
        here = measure(features.to(device), pseudo_labels=labels)
        there = measure(features, pseudo_labels=labels)
        largest = max(
            abs(getattr(here, name) / getattr(there, name) - 1)
            for name in ("m_inter", "m_intra_image", "m_intra_batch", "m_dim")
        )
        row(f"largest difference from the CPU, {title}", f"{largest:.1e}", "<= 1e-3")


def evaluation(device: torch.device, arch: str, images: int, repeats: int) -> None:
    """A checkpoint on disk to an Evaluation, images decoded already, beside the bare forward pass."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pictures = scenes.write_folder(folder / "pictures", min(images, 256), size=256)
        for copy in range(len(list(pictures.iterdir())), images):  # drawing is slower than decoding
            os.link(pictures / sorted(os.listdir(pictures))[copy % 256], pictures / f"copy_{copy}.png")
        checkpoint, network = write_checkpoint(folder / "checkpoint_0001.pth", arch)
        network = network.to(device)
        precision = "bfloat16" if device.type == "cuda" else "auto"
        evaluator = Evaluator(
            EvaluationConfig(images=pictures, num_images=images, precision=precision, arch=arch),
            Placement(cache=str(folder / "cache"), device=str(device), maps=str(folder / "dse")),
        )
        stages: list[dict[str, float]] = []

        def whole() -> None:
            evaluated = evaluator(checkpoint)
            if evaluated.status != "scored":
                raise SystemExit(evaluated.reason)
            stages.append(evaluated.seconds)

        works: dict[str, Callable[[], object]] = {
            "evaluation": whole,
            "forward": lambda: forward_seconds(network, images, evaluator.device, evaluator.precision),
        }
        taken = interleaved(works, repeats, device.type)
    row(f"evaluation of {images} images, {arch}", f"{taken['evaluation']:.3f} s")
    for stage in stages[0]:
        row(f"  {stage}", f"{statistics.median(s[stage] for s in stages[1:]):.3f} s")
    row("  bare forward pass", f"{taken['forward']:.3f} s")
    row("  evaluation / forward", f"{taken['evaluation'] / taken['forward']:.2f} x", "<= 2 x on a GPU")


def regularizer(device: torch.device, batch: int, repeats: int) -> None:
    """The term forward and backward, beside lightly's where it is installed."""
    features = features_of(batch).to(device).requires_grad_()

    def both_ways(term: Callable[[Tensor], Tensor]) -> None:
        features.grad = None
        term(features).backward()

    terms: dict[str, nn.Module] = {"ours": DSERegularizer()}
    try:
        from lightly.loss.regularizer import DSERegularizer as LightlyRegularizer

        terms["lightly"] = LightlyRegularizer(weight=1e-3).to(device)
    except ImportError:
        print("lightly is not installed: no comparison with it")
    works: dict[str, Callable[[], object]] = {
        name: lambda t=term: both_ways(t) for name, term in terms.items()
    }
    taken = interleaved(works, repeats, device.type)
    row(f"regulariser both ways, {batch} x {POSITIONS} x {WIDTH}", f"{1e3 * taken['ours']:.1f} ms")
    if "lightly" in taken:
        row("  lightly's / ours", f"{taken['lightly'] / taken['ours']:.1f} x", ">= 3 x")


def step(device: torch.device, arch: str, batch: int, repeats: int) -> None:
    """A training step of DINO with the term and without, by the real engine."""
    method = load("dino")
    recipe = dataclasses.replace(
        method.recipe_type.tiny(),
        backbone=arch,
        image_size=224,
        local_size=96,
        batch_size=batch,
        prototypes=65536 if device.type == "cuda" else 64,
    )
    works: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, weight in (("without", 0.0), ("with", 1e-3)):
            settings = Settings(
                data="scenes",
                out=Path(place) / name,
                scenes=batch,
                device=str(device),
                workers=0,
                dse_weight=weight,
            )
            trainer = engine.Trainer("dino", method, recipe, settings, device)
            trainer.report.close()
            drawn = next(iter(trainer.loader))
            works[name] = _step_of(trainer, drawn)
        taken = interleaved(works, repeats, device.type)
    row(f"DINO step, {arch}, {batch} images", f"{1e3 * taken['without']:.1f} ms")
    row("  with the term", f"{taken['with'] / taken['without']:.3f} x", "<= 1.03 x on a GPU")


def _step_of(trainer: Any, drawn: Any) -> Callable[[], object]:
    return lambda: trainer._optimise(iter([drawn]), trainer._progress())


if __name__ == "__main__":
    main()
