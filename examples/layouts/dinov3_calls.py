"""DINOv3's saving calls, repeated, not run: `python dinov3_calls.py FOLDER`.

facebookresearch/dinov3 @ 6876159, dinov3/checkpointer/checkpointer.py: `save_checkpoint`, which writes beside the final
folder and renames; dinov3/train/train.py: the folder ckpt/ITERATION and the names `student`, `teacher` and
`model_ema`. Writes ckpt/9/.metadata and so on.
"""

import tempfile
from pathlib import Path

import timm
import tiny
import torch
import torch.distributed.checkpoint as dcp

PERIOD = 10  # steps between checkpoints


if __name__ == "__main__":
    folder = tiny.folder() / "ckpt"
    folder.mkdir()
    network = tiny.vit()
    optimizer = tiny.optimizer(network)
    for count in range(PERIOD, PERIOD * tiny.SAVES + 1, PERIOD):
        tiny.step(network, optimizer)
        iteration = count - 1
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=str(iteration)))
        weights = network.state_dict()
        model = {f"{part}.backbone.{key}": value for part in ("student", "teacher", "model_ema") for key, value in weights.items()}
        dcp.save({"iteration": iteration, "model": model}, checkpoint_id=str(scratch), no_dist=True)
        scratch.rename(folder / str(iteration))
