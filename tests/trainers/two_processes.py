"""Run by torchrun from test_distributed.py: trains on two gloo processes and writes down what came out.

Usage: two_processes.py OUT METHOD...
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from dse_monitor.trainers import distributed
from dse_monitor.trainers.command_line import main
from dse_monitor.trainers.engine import data
from dse_monitor.trainers.engine import trainer as engine
from dse_monitor.trainers.method import Views
from dse_monitor.trainers.methods import load, mae
from dse_monitor.trainers.methods.mae import random_masking
from dse_monitor.trainers.settings import Settings

ROWS, WIDTH = 8, 5
SIZE = 8  # images in a batch over all processes
# what differs between processes: random states, a queue for each, the term's own count; and micro-batches
RESUMED = {
    "dino": "--prototypes 64 --drop-path 0.2 --dse-weight 0.001 --accumulate 2",
    "swav": "--queue-length 16 --queue-from-epoch 0 --freeze-prototypes-steps 0",
    "densecl": "",
}


def first_gradients(name: str, out: Path) -> dict[str, torch.Tensor]:
    """Gradients, statistics and mean loss of the first step of a tiny preset, 8 images over all processes."""
    method_type = load(name)
    recipe = method_type.recipe_type.tiny()
    for field, value in {"batch_size": 8, "drop_path": 0.0, "freeze_last_layer": 0}.items():
        if hasattr(recipe, field):
            object.__setattr__(recipe, field, value)
    settings = Settings(data="scenes", out=out / name, scenes=16, device="cpu", workers=0)
    trainer = engine.Trainer(name, method_type, recipe, settings, torch.device("cpu"))
    torch.manual_seed(7)
    measured = trainer._optimise(iter(trainer.loader), trainer._progress())
    trainer.report.close()
    result = {k: p.grad for k, p in trainer.method.named_parameters() if p.grad is not None}
    result |= {
        k: b.clone() for k, b in trainer.method.named_buffers() if k.endswith(("value", "running_var"))
    }
    return {**result, "loss": distributed.mean_over_processes(measured["loss"])}


def first_gradients_on_given_views(
    name: str, out: Path, *, frozen_statistics: bool = False
) -> dict[str, torch.Tensor]:
    """As :func:`first_gradients`, with masks drawn for the joined batch and shared out with its images.

    Args:
        name: of the method.
        out: folder of the run.
        frozen_statistics: batch norms use their running statistics.
    """
    trainer, batch = given_views(name, out)
    part = SIZE // distributed.world_size()
    mine = slice(part * distributed.rank(), part * (distributed.rank() + 1))
    views = Views(
        [image[mine] for image in batch.views.images],
        {key: value[mine] for key, value in batch.views.extra.items()},
    )
    trainer.method.train(not frozen_statistics)
    noise = torch.rand(SIZE, 64, generator=torch.Generator().manual_seed(5))[mine]
    torch.manual_seed(7)
    with mock.patch.object(mae, "random_masking", lambda _, ratio: random_masking(noise, ratio)):
        measured = trainer._optimise(iter([data.Batch(views, ())]), trainer._progress())
    result = {k: p.grad for k, p in trainer.method.named_parameters() if p.grad is not None}
    result |= {"after." + k: b.clone() for k, b in trainer.method.named_buffers()}
    return {**result, "loss": distributed.mean_over_processes(measured["loss"])}


def given_views(name: str, out: Path) -> tuple[engine.Trainer, data.Batch]:
    """A trainer with batches of eight, and the first batch as one process draws it."""
    method_type = load(name)
    recipe = dataclasses.replace(method_type.recipe_type.tiny(), batch_size=SIZE)
    if name == "swav":
        recipe = dataclasses.replace(recipe, freeze_prototypes_steps=0)
    settings = Settings(data="scenes", out=out / name, scenes=16, device="cpu", workers=0)
    trainer = engine.Trainer(name, method_type, recipe, settings, torch.device("cpu"))
    trainer.report.close()
    order = data.Order(dataclasses.replace(trainer.plan, world_size=1, rank=0), 0)
    join = data.Collator(trainer.method.collator(), 0, 0)
    return trainer, next(iter(data.Loader(trainer.loader.dataset, order, join, workers=0, pin=False)))


@contextlib.contextmanager
def in_float64():
    """Everything in float64, objectives included."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def four_others(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The methods that are not compared on views each process draws for itself."""
    with in_float64():
        found = {"swav": first_gradients_on_given_views("swav", out / "given")}
    for name in ("mae", "ijepa", "densecl"):
        found[name] = first_gradients_on_given_views(name, out / "given")
    frozen = first_gradients_on_given_views("densecl", out / "frozen", frozen_statistics=True)
    return {**found, "densecl frozen": frozen}


def resumed(out: Path) -> None:
    """Runs of four steps, whole and stopped after three, under ``out``."""
    flags = "--preset tiny --data scenes --scenes 16 --batch-size 8 --epochs 2 --workers 0 --device cpu"
    for name, more in RESUMED.items():
        begin = [name, *flags.split(), *more.split()]
        main([*begin, "--out", str(out / name / "whole")])
        main([*begin, "--out", str(out / name / "parts"), "--max-steps", "3"])
        main([*begin, "--out", str(out / name / "parts"), "--resume"])


def synchronised_norm() -> dict[str, torch.Tensor]:
    """Output and gradients of a batch norm over all processes, for rows made from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    rows, cotangent = torch.randn(2, ROWS, WIDTH, generator=generator) * 3 + 1
    mine = slice(*(ROWS // distributed.world_size() * (distributed.rank() + i) for i in (0, 1)))
    module = nn.Sequential(nn.BatchNorm1d(WIDTH))
    distributed.synchronise_batchnorm(module, torch.device("cpu"))
    x = rows[mine].clone().requires_grad_()
    out = module(x)
    (out * cotangent[mine]).sum().backward()
    assert x.grad is not None
    result = {"out": distributed.gather(out), "grad": distributed.gather(x.grad)}
    result |= {name: distributed.sum_over_processes(p.grad) for name, p in module.named_parameters()}
    return {**result, **dict(module.named_buffers())}


def gathered_gradient() -> torch.Tensor:
    """Averaged gradient of a weight in a loss whose gradient comes back transposed in memory."""
    rows = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    part = 6 // distributed.world_size()
    weight = torch.eye(3, requires_grad=True)
    mine = rows[part * distributed.rank() : part * (distributed.rank() + 1)] @ weight
    joined = distributed.gather_with_gradient(mine)
    torch.einsum("npc,npd->pcd", joined, joined).square().sum().backward()
    assert weight.grad is not None
    return distributed.mean_over_processes(weight.grad)


if __name__ == "__main__":
    out, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    written = {name: first_gradients(name, out) for name in names}
    written |= {f"given {name}": value for name, value in four_others(out).items()}
    written["norm"] = synchronised_norm()
    written["gathered"] = gathered_gradient()
    mine = {"b": torch.tensor(1.0 + dist.get_rank()), "a": torch.tensor(10.0 * dist.get_rank())}
    written["means"] = distributed.means_over_processes(mine)
    if dist.get_rank() == 0:
        torch.save(written, out / "written.pt")
    resumed(out / "runs")
    dist.destroy_process_group()
