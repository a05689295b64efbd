"""timm's CheckpointSaver, as timm's train.py calls it: `python timm_saver.py FOLDER`.

Writes checkpoint-0.pth.tar and so on, the best ones again as model_best.pth.tar and the newest as
last.pth.tar, and between epochs recovery-E-B.pth.tar, of which timm keeps the newest two.
"""

import argparse

import timm
import tiny
from timm.utils import CheckpointSaver

SIZE = {"img_size": 32, "patch_size": 8, "depth": 2}

if __name__ == "__main__":
    folder = tiny.folder()
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SIZE)
    optimizer = tiny.optimizer(network)
    saver = CheckpointSaver(
        model=network,
        optimizer=optimizer,
        args=argparse.Namespace(model="vit_tiny_patch16_224", num_classes=0, model_kwargs=SIZE),
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
        max_history=tiny.SAVES,
    )
    for epoch in range(tiny.SAVES):
        for batch in range(4):
            tiny.step(network, optimizer)
            if batch == 1:
                saver.save_recovery(epoch, batch_idx=batch)
        saver.save_checkpoint(epoch, metric=float(epoch))
