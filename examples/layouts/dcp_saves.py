"""torch.distributed.checkpoint, `dcp.save` to step_2, step_4 and so on.

Alone, `python dcp_saves.py FOLDER`; or sharded over two processes with FSDP2,
`torchrun --standalone --nproc-per-node 2 dcp_saves.py FOLDER`.
Writes step_2/.metadata and step_2/__0_0.distcp.
"""

import os

import tiny
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

if __name__ == "__main__":
    folder = tiny.folder()
    network = tiny.vit()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (processes,))
        for block in network.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
    optimizer = tiny.optimizer(network)
    for count in tiny.saves(network, optimizer):
        model_state, optimizer_state = get_state_dict(network, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state}
        dcp.save(state, checkpoint_id=str(folder / f"step_{count}"), no_dist=processes == 1)
    if processes > 1:
        dist.destroy_process_group()
