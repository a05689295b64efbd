"""DSE as a callback of Hugging Face's Trainer. Needs the extra ``transformers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dse_monitor.callbacks.inline import InlineDSE

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ImportError(
            "this callback needs Transformers, which is not installed: "
            "pip install 'dse-monitor[transformers]'"
        ) from error


class DSECallback(TrainerCallback):
    """Measures DSE when an epoch of training is over and logs it as ``dse/...`` through the trainer.

    ``trainer.add_callback(DSECallback(trainer, InlineDSE(images=images, every=5)))``. The numbers go to
    every reporter of the trainer and to ``trainer.state.log_history``.

    Args:
        trainer: the trainer; its callbacks are not told which one calls them, and only it can log.
        inline: what is measured, and how often.
    """

    def __init__(self, trainer: Trainer, inline: InlineDSE) -> None:
        self.trainer = trainer
        self.inline = inline

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Find out now whether it will work."""
        if model is not None:
            self.inline.check(model)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure if it is time."""
        if model is not None and self.inline.due(round(state.epoch or 0)):
            scalars = self.inline.scalars(model)
            if scalars:
                self.trainer.log(scalars)
