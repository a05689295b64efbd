"""torchtune's saving calls, repeated, not run: `python torchtune_calls.py FOLDER`.

pytorch/torchtune @ bd2a0fc, torchtune/training/checkpointing/_checkpointer.py: `save_checkpoint` of
FullModelHFCheckpointer. Writes epoch_0/model-00001-of-00001.safetensors with its index, the configuration and
epoch_0/recipe_state.pt, and so on.
"""

import json

import tiny
import torch
from safetensors.torch import save_file
from save_pretrained import vit

if __name__ == "__main__":
    folder = tiny.folder()
    network = vit()
    optimizer = tiny.optimizer(network)
    for epoch in range(tiny.SAVES):
        tiny.loss(network(tiny.images()).last_hidden_state).backward()
        optimizer.step()
        optimizer.zero_grad()
        output = folder / f"epoch_{epoch}"
        output.mkdir()
        weights = network.state_dict()
        shard = "model-00001-of-00001.safetensors"
        save_file(weights, output / shard, metadata={"format": "pt"})
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in weights.values())},
            "weight_map": dict.fromkeys(weights, shard),
        }
        (output / "model.safetensors.index.json").write_text(json.dumps(index))
        network.config.save_pretrained(output)  # torchtune copies what lay beside the weights it began from
        recipe = {"optimizer": optimizer.state_dict(), "epochs_run": epoch + 1, "total_epochs": tiny.SAVES}
        torch.save(recipe, output / "recipe_state.pt")
