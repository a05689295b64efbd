"""`save_pretrained(f"epoch-{epoch}")` of a network of transformers: `python save_pretrained.py FOLDER`.

Writes epoch-0/config.json, epoch-0/model.safetensors and so on.
"""

import tiny
from transformers import ViTConfig, ViTModel


def vit():
    """The ViT of tiny.py as transformers has it; its configuration says the heads."""
    return ViTModel(
        ViTConfig(
            hidden_size=192,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=768,
            image_size=32,
            patch_size=8,
        ),
        add_pooling_layer=False,
    )


if __name__ == "__main__":
    folder = tiny.folder()
    network = vit()
    optimizer = tiny.optimizer(network)
    for epoch in range(tiny.SAVES):
        tiny.loss(network(tiny.images()).last_hidden_state).backward()
        optimizer.step()
        optimizer.zero_grad()
        network.save_pretrained(folder / f"epoch-{epoch}")
