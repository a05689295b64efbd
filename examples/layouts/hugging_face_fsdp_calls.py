"""Hugging Face's saving calls with FSDP, repeated, not run: `python hugging_face_fsdp_calls.py FOLDER`.

huggingface/accelerate @ 16cb6eb, src/accelerate/utils/fsdp_utils.py: `save_fsdp_model` and
`save_fsdp_optimizer`, with a sharded state dict.
Writes checkpoint-2/pytorch_model_fsdp_0/.metadata, checkpoint-2/optimizer_0/.metadata and
checkpoint-2/trainer_state.json, and so on.
"""

import json

import tiny
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict

if __name__ == "__main__":
    folder = tiny.folder()
    network = tiny.vit()
    optimizer = tiny.optimizer(network)
    for count in tiny.saves(network, optimizer):
        model_state, optimizer_state = get_state_dict(network, optimizer)
        output = folder / f"checkpoint-{count}"
        output.mkdir()
        for name, state in (
            ("pytorch_model_fsdp_0", {"model": model_state}),
            ("optimizer_0", {"optimizer": optimizer_state}),
        ):
            dcp.save(state, storage_writer=dcp.FileSystemWriter(output / name), no_dist=True)
        progress = {"epoch": count / 20, "global_step": count, "max_steps": 2 * tiny.SAVES}
        (output / "trainer_state.json").write_text(json.dumps(progress))
