"""hydra's default folder with an own training loop: `python hydra_job.py FOLDER`.

Writes outputs/DATE/TIME/.hydra/config.yaml and outputs/DATE/TIME/checkpoint_1.pth and so on, in FOLDER.
"""

import os
import sys
from pathlib import Path

import hydra
import tiny
import torch
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base="1.3", config_path=None)
def main(_):
    """The training; hydra has made the folder it writes to."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    network = tiny.vit()
    optimizer = tiny.optimizer(network)
    for epoch in range(1, tiny.SAVES + 1):
        tiny.step(network, optimizer)
        torch.save({"model": network.state_dict(), "epoch": epoch}, folder / f"checkpoint_{epoch}.pth")


if __name__ == "__main__":
    os.chdir(tiny.folder())
    sys.argv[1:] = []  # the rest would be hydra's overrides
    main()
