"""A ViT of vit-pytorch, whose patch embedding is no convolution, so that its channels must be said."""

import torch
from vit_pytorch import ViT

from dse_monitor import OwnNetwork
from dse_monitor.tokens import without_prefix


def tokens(net, images):
    """What `ViT.forward` does up to its pooling."""
    patches = net.to_patch_embedding(images)
    cls = net.cls_token.expand(len(images), -1, -1)
    positioned = torch.cat((cls, patches), dim=1) + net.pos_embedding
    return without_prefix(net.transformer(net.dropout(positioned)), 1, has_cls=True)


def build():
    """A network of the size that was trained."""
    net = ViT(image_size=64, patch_size=8, num_classes=10, dim=96, depth=4, heads=3, mlp_dim=192)
    return OwnNetwork(module=net, tokens=tokens, channels=3, image_size=64)
