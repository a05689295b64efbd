"""DINOv3's saving calls, repeated, not run: `python dinov3_calls.py FOLDER`.

facebookresearch/dinov3 @ 6876159, dinov3/checkpointer/checkpointer.py: `save_checkpoint`, which writes beside
the final folder and renames; dinov3/train/train.py: `do_train`;
dinov3/train/ssl_meta_arch.py: the names of the parts;
dinov3/models/vision_transformer.py: the names of the tensors. Writes ckpt/1/.metadata and so on.
"""

import tempfile
from functools import partial
from pathlib import Path

import tiny
import torch
import torch.distributed.checkpoint as dcp
from timm.models.eva import Eva


def rotary_vit():
    """DINOv3's ViT as timm has it, of the size of tiny.py."""
    torch.manual_seed(0)
    return Eva(
        img_size=32,
        patch_size=8,
        embed_dim=192,
        depth=2,
        num_heads=3,
        num_classes=0,
        qkv_bias=False,
        init_values=1.0,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=100,
        rope_rotate_half=True,
        num_reg_tokens=4,
        global_pool="token",
        use_fc_norm=False,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-5),
    )


def in_dinov3s_names(network):
    """The network's tensors under the names that DINOv3 gives them."""
    tensors = {"rope_embed.periods": network.rope.periods.bfloat16(), "mask_token": torch.zeros(1, 192)}
    for name, tensor in network.state_dict().items():
        if not name.startswith("rope."):
            name = name.replace("reg_token", "storage_tokens")
            tensors[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = tensor
    return tensors


if __name__ == "__main__":
    folder = tiny.folder() / "ckpt"
    folder.mkdir()
    network = rotary_vit()
    optimizer = tiny.optimizer(network)
    for count in tiny.saves(network, optimizer):
        iteration = count - 1
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=str(iteration)))
        backbone = in_dinov3s_names(network).items()
        model = {
            f"{part}.backbone.{name}": value for part in ("student", "teacher") for name, value in backbone
        }
        dcp.save({"iteration": iteration, "model": model}, checkpoint_id=str(scratch), no_dist=True)
        scratch.rename(folder / str(iteration))
