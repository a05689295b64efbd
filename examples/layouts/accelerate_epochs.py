"""accelerate's `save_state(f"epoch_{epoch}")`, as its examples call it: `python accelerate_epochs.py FOLDER`.

Writes epoch_0/model.safetensors and so on.
"""

import tiny
from accelerate import Accelerator

if __name__ == "__main__":
    folder = tiny.folder()
    accelerator = Accelerator(cpu=True)
    network = tiny.vit()
    network, optimizer = accelerator.prepare(network, tiny.optimizer(network))
    for epoch in range(tiny.SAVES):
        tiny.step(network, optimizer)
        accelerator.save_state(str(folder / f"epoch_{epoch}"))
