"""What the DSE term adds to a training step: the engine's own steps of DINO on ViT-S/16, with it and without.

    python benchmarks/dse_step.py [--batch 32] [--rounds 5] [--local-crops 0] [--threads 2]

One trainer takes all steps, on views drawn beforehand, with its regulariser in place or taken out: the same
weights, memory and optimiser. A round is four steps, with, without, without, with, so that a machine growing
slower or faster favours neither; two steps before the first round are not counted. Medians of the rounds are
printed, beside the term alone (forward and backward on the step's own dense tokens). Processor seconds are
those of all threads of this process, which other work on the machine moves less. Batch 32 without local crops
needs some 12 GB, batch 4 2.5 GB.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dse_monitor.trainers.engine import trainer as engine
from dse_monitor.trainers.methods.dino import DINO, DINORecipe
from dse_monitor.trainers.settings import Settings

LIMIT = 1.10  # a step with the term may take a tenth more


class Seconds(NamedTuple):
    """By the clock, and of all threads of this process."""

    wall: float
    processor: float


def seconds(work: Callable[[], object]) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def mean(parts: Sequence[Seconds]) -> Seconds:
    return Seconds(*(statistics.fmean(column) for column in zip(*parts, strict=True)))


def median(parts: Sequence[Seconds]) -> Seconds:
    return Seconds(*(statistics.median(column) for column in zip(*parts, strict=True)))


class Steps:
    """The engine's steps on one batch of views.

    Args:
        recipe: of DINO.
        weight: of the term.
    """

    def __init__(self, recipe: DINORecipe, weight: float) -> None:
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(
                data="scenes",
                out=Path(folder),
                scenes=recipe.batch_size,
                device="cpu",
                workers=0,
                dse_weight=weight,
                log_every=10**9,
            )
            self.trainer = engine.Trainer("dino", DINO, recipe, settings, torch.device("cpu"))
            self.trainer.report.close()
        self.regularizer = self.trainer.regularizer
        assert self.regularizer is not None
        self.batch = next(iter(self.trainer.loader))
        self.tokens: Tensor | None = None

    def take(self, with_term: bool) -> dict[str, Tensor]:
        """One step; returns what it measured."""
        self.trainer.regularizer = self.regularizer if with_term else None
        measured = self.trainer._optimise(iter([self.batch]), self.trainer._progress())
        self.trainer.step += 1
        assert ("dse" in measured) == with_term
        return measured

    def term(self) -> None:
        """The term alone, forward and backward, on the network's dense tokens."""
        assert self.regularizer is not None
        if self.tokens is None:
            with torch.no_grad():
                out = self.trainer.method(self.trainer._received(self.batch), self.trainer._progress())
            self.tokens = out.dense.detach().float().requires_grad_()
        self.tokens.grad = None
        self.regularizer(self.tokens).backward()


def measure(steps: Steps, rounds: int) -> tuple[list[list[Seconds]], Any]:
    """For each round the seconds of a step without the term, with it, and of the term alone."""
    for with_term in (True, False):
        steps.take(with_term)  # the first ones allocate
    steps.term()
    taken = []
    for _ in range(rounds):
        outer = [seconds(lambda: steps.take(True))]
        inner = [seconds(lambda: steps.take(False)) for _ in range(2)]
        outer.append(seconds(lambda: steps.take(True)))
        alone = [seconds(steps.term) for _ in range(2)]
        taken.append([mean(inner), mean(outer), mean(alone)])
        print_row(f"round {len(taken)}", *taken[-1])
    assert steps.tokens is not None
    return taken, tuple(steps.tokens.shape)


def print_row(name: str, without: Seconds, within: Seconds, term: Seconds) -> None:
    """One line: seconds by the clock, ratios by the clock and by processor seconds."""
    ratios = f"{within.wall / without.wall:.3f} | {within.processor / without.processor:.3f}"
    share = f"{term.wall / without.wall:.1%}"
    print(
        f"| {name} | {without.wall:.3f} | {within.wall:.3f} | {ratios} | {term.wall:.3f} | {share} |",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--local-crops", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--weight", type=float, default=1e-3)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    recipe = dataclasses.replace(
        DINORecipe(),
        backbone=chosen.backbone,
        image_size=chosen.image_size,
        batch_size=chosen.batch,
        local_crops=chosen.local_crops,
    )
    steps = Steps(recipe, chosen.weight)
    print(f"torch {torch.__version__}, {chosen.threads} threads, {chosen.backbone}, {chosen.image_size} px")
    crops = f"2 global and {chosen.local_crops} local crops"
    print(f"batch {chosen.batch}, {crops}, {recipe.prototypes} prototypes\n")
    print("| | step, s | with the term, s | ratio | ratio, processor | term alone, s | of the step |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    taken, shape = measure(steps, chosen.rounds)
    print_row("median", *(median(column) for column in zip(*taken, strict=True)))
    ratios = [within.wall / without.wall for without, within, _ in taken]
    print(f"\nterm on {shape}; ratio within rounds {min(ratios):.3f} to {max(ratios):.3f}, ", end="")
    ratio = statistics.median(ratios)
    print(f"median {ratio:.3f}: {'at most' if ratio <= LIMIT else 'more than'} {LIMIT:.2f}")


if __name__ == "__main__":
    main()
