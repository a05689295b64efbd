"""Lightning with its own logger, a checkpoint after each epoch: `python lightning_epochs.py FOLDER`.

Writes lightning_logs/version_0/checkpoints/epoch=0-step=2.ckpt and so on.
"""

import lightning
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint


class Module(lightning.LightningModule):
    """The ViT as `backbone`, under which its weights are stored."""

    def __init__(self):
        super().__init__()
        self.backbone = tiny.vit()

    def training_step(self, batch, _):
        """The loss of one batch."""
        return tiny.loss(self.backbone(batch))

    def configure_optimizers(self):
        """The optimiser of all scripts."""
        return tiny.optimizer(self)


def train(folder, batches, **options):
    """A training with as many batches an epoch; the rest goes to the Trainer."""
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(tiny.images(2 * batches), batch_size=2))


if __name__ == "__main__":
    train(tiny.folder(), batches=2, max_epochs=tiny.SAVES, callbacks=[ModelCheckpoint(save_top_k=-1)])
