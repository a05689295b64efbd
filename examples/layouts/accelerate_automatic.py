"""accelerate with `automatic_checkpoint_naming`: `python accelerate_automatic.py FOLDER`.

Writes checkpoints/checkpoint_0/model.safetensors and so on; the numbers count what was saved.
"""

import tiny
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

if __name__ == "__main__":
    naming = ProjectConfiguration(project_dir=str(tiny.folder()), automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, project_config=naming)
    network = tiny.vit()
    network, optimizer = accelerator.prepare(network, tiny.optimizer(network))
    for _ in range(tiny.SAVES):
        tiny.step(network, optimizer)
        accelerator.save_state()
