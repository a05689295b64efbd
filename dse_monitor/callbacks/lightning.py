"""DSE as a Lightning callback, for stable-pretraining's modules too. Needs the extra ``lightning``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dse_monitor.callbacks.inline import InlineDSE

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise ImportError(
                "this callback needs Lightning, which is not installed: pip install 'dse-monitor[lightning]'"
            ) from error


class DSECallback(Callback):
    """Measures DSE when an epoch of training is over and logs it as metrics ``dse/...`` of the module.

    ``Trainer(callbacks=[DSECallback(InlineDSE(images=loader, encoder="backbone", every=5))])``. The metrics
    go to every logger of the trainer, and ``ModelCheckpoint(monitor="dse/dse", mode="max", every_n_epochs=5,
    save_on_train_epoch_end=True)`` can follow them: in the same rhythm, after training and not validation.

    Args:
        inline: what is measured, and how often.
    """

    def __init__(self, inline: InlineDSE) -> None:
        self.inline = inline

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out now whether it will work."""
        self.inline.check(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure if it is time."""
        if self.inline.due(trainer.current_epoch + 1):
            scalars = self.inline.scalars(pl_module)
            # every process has the same numbers; averaging them changes nothing and keeps Lightning content
            pl_module.log_dict(scalars, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
