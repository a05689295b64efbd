"""Images per second of one training step: ours beside lightly's own example loop, on the same views.

``OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/trainers.py --batch 64`` prints one table. Network, batch,
precision, memory layout and data are the same. Each side lives in a process of its own, as it would outside
of a benchmark, and only one works at a time: a pair is one step of each right after the other, and which goes
first alternates. Ratios are medians over pairs, with quartiles, so that a busy machine slows both alike.
Beside the clock stands the processor time (of the process, by the kernel's account), which other programs
disturb less, and the page faults of a step. The views are drawn beforehand, and the augmentations timed
apart; normalising them is part of both steps. Ours are the engine's steps, with all that it does in them.

``--count`` counts instead of timing, which no load disturbs: floating-point operations in matrix products and
convolutions, torch operators called, and memory asked for, of one step of each side.

Environment variables reach both sides: with ``MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_MAX_=0``
lightly keeps its memory too, as our engine lets ours do, and what is left is the difference of the loops.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    # as a script, this file would hide the package of the same name
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.lightly_loops import ALIKE, LOOPS
from dse_monitor.trainers.engine import trainer as engine
from dse_monitor.trainers.method import Recipe, normalise
from dse_monitor.trainers.methods import load
from dse_monitor.trainers.settings import Settings

SIZES = {"mini": {}, "small": {"backbone": "vit_small_patch16_224", "image_size": 224, "local_size": 96}}
WARMUP_STEPS = 3  # the first calls allocate


class Cost(NamedTuple):
    """Of one step: seconds by the clock, seconds of the processor, page faults."""

    clock: float
    processor: float
    faults: int


def cost(step: Callable[[], None]) -> Cost:
    before, then = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    step()
    clock, after = time.perf_counter() - then, resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(clock, processor, after.ru_minflt - before.ru_minflt)


class Work(NamedTuple):
    """Of one step: GFLOP in products and convolutions, torch operators called, MB asked for."""

    gflop: float
    operators: int
    megabytes: float


def work(step: Callable[[], None]) -> Work:
    with FlopCounterMode(display=False) as counter:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = profiled.key_averages()
    asked = sum(max(event.self_cpu_memory_usage, 0) for event in events)
    return Work(counter.get_total_flops() / 1e9, sum(event.count for event in events), asked / 1e6)


def ours(name: str, recipe: Recipe, folder: Path) -> Callable[[], None]:
    """The engine's step on fixed views, which are left in ``folder`` for the other side.

    It stands in the middle of the run, where nothing is frozen any more.
    """
    batch = recipe.batch_size
    settings = Settings(data="scenes", out=folder / "run", scenes=4 * batch, device="cpu", workers=0)
    trainer = engine.Trainer(name, load(name), recipe, settings, torch.device("cpu"))
    next(iter(trainer.loader))  # draws the scenes
    then = time.perf_counter()
    drawn = next(iter(trainer.loader))
    torch.save((drawn.views, batch / (time.perf_counter() - then)), folder / "views.pt")
    trainer.step = trainer.plan.total_steps // 2

    def step() -> None:
        measured = trainer._optimise(iter([drawn]), trainer._progress())
        trainer.report.advance(measured)
        trainer.step += 1

    return step


def lightlys(name: str, recipe: Recipe, folder: Path) -> Callable[[], None]:
    """The example loop's step on the same views, normalised and laid out in memory as the engine does."""
    method = load(name)
    drawn, _ = torch.load(folder / "views.pt", weights_only=False)

    def arrange() -> None:
        images = normalise(drawn, method.mean, method.std).images
        if convolutional:
            images = [image.contiguous(memory_format=torch.channels_last) for image in images]
        views.images[:] = images

    convolutional = "vit" not in recipe.backbone
    views = drawn._replace(images=list(drawn.images))
    arrange()
    loop = LOOPS[name](recipe, views)

    def step() -> None:
        arrange()
        loop()

    return step


def side(build: Callable[..., Callable[[], None]], connection: Connection, *arguments: Any) -> None:
    """One process: build, warm up, then one step for each measure asked for, until there is no more."""
    step = build(*arguments)
    for _ in range(WARMUP_STEPS):
        step()
    connection.send(None)
    while measure := connection.recv():
        connection.send(measure(step))


def start(build: Callable[..., Callable[[], None]], *arguments: Any) -> Connection:
    """A process for one side, warm when this returns; it ends when told to, or with this one."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=side, args=(build, there, *arguments), daemon=True).start()
    there.close()
    here.recv()
    return here


def pairs(sides: Sequence[Connection], rounds: int) -> Iterator[list[Cost]]:
    """Costs of one step of each side; every second round starts with the other one."""
    for i in range(rounds):
        costs = {}
        for k in (0, 1) if i % 2 == 0 else (1, 0):
            sides[k].send(cost)
            costs[k] = sides[k].recv()
        yield [costs[0], costs[1]]


def row(batch: int, measured: Sequence[Sequence[Cost]]) -> list[str]:
    mine, theirs = zip(*measured, strict=True)
    speeds = [batch / median(c.clock for c in column) for column in (mine, theirs)]
    clock = [b.clock / a.clock for a, b in measured]
    low, middle, high = quantiles(clock, n=4)
    processor = median(b.processor / a.processor for a, b in measured)
    faults = [f"{median(c.faults for c in column):.0f}" for column in (mine, theirs)]
    return [
        *(f"{s:.1f}" for s in speeds),
        f"{middle:.2f}",
        f"{low:.2f}-{high:.2f}",
        f"{processor:.2f}",
        *faults,
    ]


def counts(sides: Sequence[Connection]) -> list[str]:
    for connection in sides:
        connection.send(work)
    mine, theirs = (connection.recv() for connection in sides)
    forms = ("{:.2f}", "{:.0f}", "{:.0f}")
    return [form.format(each[i]) for i, form in enumerate(forms) for each in (mine, theirs)]


def compare(name: str, changes: dict[str, Any], batch: int, rounds: int) -> list[str]:
    """A line of the table; of counts when there are no rounds."""
    recipe = load(name).recipe_type.tiny()
    known = {field.name for field in dataclasses.fields(recipe)}
    changes = {k: v for k, v in {**changes, **ALIKE.get(name, {})}.items() if k in known}
    recipe = dataclasses.replace(recipe, batch_size=batch, **changes)
    with tempfile.TemporaryDirectory() as folder:
        sides = [start(build, name, recipe, Path(folder)) for build in (ours, lightlys)]
        _, views_per_second = torch.load(Path(folder) / "views.pt", weights_only=False)
        cells = (
            [*row(batch, list(pairs(sides, rounds))), f"{views_per_second:.0f}"] if rounds else counts(sides)
        )
        for connection in sides:
            connection.send(None)
    return [name, *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=sorted(LOOPS), default=sorted(LOOPS))
    parser.add_argument("--size", choices=sorted(SIZES), default="mini")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--count", action="store_true")
    chosen = parser.parse_args()
    heading = ("", "ours img/s", "lightly img/s", "ratio", "quartiles", "by processor")
    heading = (*heading, "faults", "lightly faults", "our views/s")
    rounds, how = chosen.rounds, f"{chosen.rounds} pairs"
    if chosen.count:
        heading = (
            "",
            *(f"{side}{unit}" for unit in ("GFLOP", "operators", "MB") for side in ("", "lightly ")),
        )
        rounds, how = 0, "counted"
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, batch {chosen.batch}, {chosen.size}, {how}")
    for name in ("", *chosen.methods):
        cells = compare(name, SIZES[chosen.size], chosen.batch, rounds) if name else heading
        print("  ".join(f"{cell:>17}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
