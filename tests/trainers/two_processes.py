"""Run by torchrun from test_distributed.py: trains on two gloo processes and writes down what came out.

Usage: two_processes.py OUT METHOD...
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from trainers import distributed, engine
from trainers.__main__ import main
from trainers.methods import load
from trainers.settings import Settings

ROWS, WIDTH = 8, 5


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
    written["norm"] = synchronised_norm()
    written["gathered"] = gathered_gradient()
    if dist.get_rank() == 0:
        torch.save(written, out / "written.pt")
    engine.STOP_CHECK_STEPS = 1
    flags = "--preset tiny --data scenes --scenes 16 --batch-size 8 --epochs 2 --prototypes 64 --workers 0"
    main(["dino", *flags.split(), "--device", "cpu", "--out", str(out / "run"), "--max-steps", "3"])
    main(["dino", *flags.split(), "--device", "cpu", "--out", str(out / "run"), "--resume"])
    dist.destroy_process_group()
