"""torchtitan's saving calls, repeated, not run: `python torchtitan_calls.py FOLDER`.

pytorch/torchtitan @ b5bcd76, torchtitan/components/checkpointer/dcp.py: `_create_checkpoint_id` and
`_flattened_model_states_sd`, which puts the network's tensors at the top; trainer.py: `state_dict`.
Writes checkpoint/step-2/.metadata and so on.
"""

import tiny
import torch.distributed.checkpoint as dcp

if __name__ == "__main__":
    folder = tiny.folder() / "checkpoint"
    network = tiny.vit()
    optimizer = tiny.optimizer(network)
    for count in tiny.saves(network, optimizer):
        states = {
            **network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": {"last_epoch": count},
            "train_state": {"step": count, "ntokens_seen": 4096 * count},
        }
        dcp.save(states, checkpoint_id=str(folder / f"step-{count}"), no_dist=True)
