"""Encoders of official codes that differ from the library's: MoCo v3's stem, VICRegL's norm."""

import torch
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dse_monitor.checkpoints import load_encoder


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def shaken(module):
    """The module with weights and statistics that are not the initial ones."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = 0.2 * torch.randn(value.shape)
            value += noise.abs() if name.endswith("running_var") else noise
    return module.eval()


def test_moco_v3s_convolutional_stem(saved):
    torch.manual_seed(0)
    width = 384
    vit = VisionTransformer(img_size=32, patch_size=16, embed_dim=width, depth=1, num_heads=12, num_classes=0)
    layers, channels = [], 3
    for out in (width // 8, width // 4, width // 2, width):
        layers += [nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    vit.patch_embed.proj = nn.Sequential(*layers, nn.Conv2d(channels, width, 1))
    shaken(vit)
    state = {
        **prefixed("module.base_encoder.", shaken(VisionTransformer(depth=0, num_classes=0)).state_dict()),
        **prefixed("module.momentum_encoder.", vit.state_dict()),
        "module.momentum_encoder.head.0.weight": torch.zeros(8, width),
    }
    content = {"epoch": 11, "arch": "vit_conv_small", "state_dict": state}
    encoder = load_encoder(saved(content, "checkpoint_0010.pth.tar"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vit.forward_features(images)[:, 1:]
    assert (encoder.source.layout, encoder.source.encoder, encoder.epoch) == (
        "mocov3",
        "momentum_encoder",
        11,
    )
    assert "12 heads, patch 16, convolutional stem" in encoder.arch
    assert torch.allclose(encoder.dense_tokens(images), expected, atol=1e-5)


AUTHORS = {
    "stem.": "downsample_layers.0.",
    ".blocks.": ".",
    "conv_dw": "dwconv",
    "mlp.fc": "pwconv",
    "head.norm": "norm",
}


def authors_name(name):
    """timm's name of a ConvNeXt's tensor as its authors spell it."""
    parts = name.split(".")
    if "downsample" in parts:
        return ".".join(["downsample_layers", parts[1], *parts[3:]])
    for ours, theirs in AUTHORS.items():
        name = name.replace(ours, theirs)
    return name


def test_vicregls_convnext_norms_every_position_and_others_do_not(saved):
    torch.manual_seed(0)
    model = shaken(ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), ls_init_value=None, num_classes=0))
    state = {authors_name(name): tensor for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = model.forward_features(images).flatten(2).transpose(1, 2)
        normed = nn.functional.layer_norm(plain, (32,), state["norm.weight"], state["norm.bias"], 1e-6)
    content = {
        "epoch": 11,
        "model": {**prefixed("module.backbone.", state), "module.classifier.weight": torch.zeros(3, 32)},
    }
    encoder = load_encoder(saved(content, "vicregl/model.pth"))
    assert (encoder.source.layout, encoder.epoch) == ("vicregl", 11)
    assert torch.allclose(encoder.dense_tokens(images), normed, atol=1e-5)
    assert torch.allclose(load_encoder(saved(state, "plain.pth")).dense_tokens(images), plain, atol=1e-5)
