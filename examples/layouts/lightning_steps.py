"""Lightning with a checkpoint every two steps, all within one epoch: `python lightning_steps.py FOLDER`.

Writes lightning_logs/version_0/checkpoints/epoch=0-step=2.ckpt and so on.
"""

import tiny
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_epochs import train

if __name__ == "__main__":
    saver = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
    train(tiny.folder(), batches=2 * tiny.SAVES, max_epochs=1, callbacks=[saver])
