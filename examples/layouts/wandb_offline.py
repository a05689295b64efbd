"""wandb without a server, checkpoints in the run's `files`: `python wandb_offline.py FOLDER`.

Writes wandb/offline-run-DATE-ID/files/checkpoints/step=2.ckpt and so on, and the link wandb/latest-run.
"""

from pathlib import Path

import tiny
import torch
import wandb

if __name__ == "__main__":
    network = tiny.vit()
    optimizer = tiny.optimizer(network)
    with wandb.init(dir=str(tiny.folder()), mode="offline", project="tiny") as run:
        checkpoints = Path(run.dir) / "checkpoints"
        checkpoints.mkdir()
        for count in tiny.saves(network, optimizer):
            torch.save({"state_dict": network.state_dict()}, checkpoints / f"step={count}.ckpt")
            run.log({"step": count})
