"""Hugging Face's Trainer with `save_steps`: `python transformers_trainer.py FOLDER`.

Writes checkpoint-2/model.safetensors, checkpoint-2/trainer_state.json and so on.
"""

import tiny
import torch
from save_pretrained import vit
from transformers import Trainer, TrainingArguments


class Images(torch.utils.data.Dataset):
    """Random images under the name by which the network takes them."""

    def __init__(self, count):
        self.pixels = tiny.images(count)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index]}


class FeatureTrainer(Trainer):
    """A Trainer whose loss is that of tiny.py."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        """The loss of one batch."""
        output = model(**inputs)
        value = tiny.loss(output.last_hidden_state)
        return (value, output) if return_outputs else value


if __name__ == "__main__":
    arguments = TrainingArguments(
        output_dir=str(tiny.folder()),
        max_steps=2 * tiny.SAVES,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    FeatureTrainer(vit(), arguments, train_dataset=Images(16)).train()
