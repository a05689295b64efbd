"""Run by torchrun from test_sharding.py: the same steps under DDP and under FSDP, whole states written down.

Usage: two_shards.py OUT METHOD...
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from dse_monitor.trainers.command_line import main
from dse_monitor.trainers.engine import sharding
from dse_monitor.trainers.engine import trainer as engine
from dse_monitor.trainers.methods import load
from dse_monitor.trainers.settings import Settings

STEPS = 3


def trained(name: str, out: Path, parallel: str) -> dict[str, torch.Tensor]:
    """Losses of a few steps and every parameter after them."""
    method_type = load(name)
    recipe = dataclasses.replace(method_type.recipe_type.tiny(), batch_size=8)
    settings = Settings(
        data="scenes", out=out / name / parallel, scenes=32, device="cpu", workers=0, parallel=parallel
    )
    trainer = engine.Trainer(name, method_type, recipe, settings, torch.device("cpu"))
    torch.manual_seed(7)
    batches, losses = iter(trainer.loader), []
    for trainer.step in range(STEPS):
        losses.append(trainer._optimise(batches, trainer._progress())["loss"])
    trainer.report.close()
    assert isinstance(trainer.module, sharding.Sharded) is (parallel == "fsdp")
    return {**sharding.whole(dict(trainer.method.state_dict())), "losses": torch.stack(losses)}


if __name__ == "__main__":
    out, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    written = {name: {kind: trained(name, out, kind) for kind in ("ddp", "fsdp")} for name in names}
    if dist.get_rank() == 0:
        torch.save(written, out / "written.pt")
    flags = "dino --preset tiny --data scenes --scenes 16 --batch-size 8 --epochs 2 --prototypes 64"
    flags = [
        *flags.split(),
        "--workers",
        "0",
        "--device",
        "cpu",
        "--parallel",
        "fsdp",
        "--dse-weight",
        "0.001",
    ]
    main([*flags, "--out", str(out / "whole")])
    main([*flags, "--out", str(out / "parts"), "--max-steps", "3", "--checkpointing"])
    main([*flags, "--out", str(out / "parts"), "--resume"])
    dist.destroy_process_group()
