"""composer's saving calls, repeated, not run: `python composer_calls.py FOLDER`.

mosaicml/composer @ 6405188, composer/callbacks/checkpoint_saver.py: the default names;
composer/core/state.py and time.py: `state_dict`. Writes checkpoints/ep1-ba4-rank0.pt and so on, and the link
checkpoints/latest-rank0.pt.
"""

import os

import tiny
import torch

BATCHES = 4  # in an epoch

if __name__ == "__main__":
    folder = tiny.folder() / "checkpoints"
    folder.mkdir()
    network = tiny.vit()
    optimizer = tiny.optimizer(network)
    for epoch in range(1, tiny.SAVES + 1):
        for _ in range(BATCHES):
            tiny.step(network, optimizer)
        batch = BATCHES * epoch
        timestamp = {"epoch": epoch, "batch": batch, "sample": 4 * batch, "batch_in_epoch": 0}
        state = {
            "model": network.state_dict(),
            "optimizers": {"AdamW": optimizer.state_dict()},
            "timestamp": {"Timestamp": timestamp},
            "run_name": folder.parent.name,
        }
        name = f"ep{epoch}-ba{batch}-rank0.pt"
        torch.save({"state": state, "rng": []}, folder / name)
        latest = folder / "latest-rank0.pt"
        latest.unlink(missing_ok=True)
        os.symlink(name, latest)
