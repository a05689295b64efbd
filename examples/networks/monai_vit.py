"""MONAI's ViT for 2D slices, as its self-supervised tutorials train it: one channel, no class token."""

from monai.networks.nets import ViT

from dse_monitor import OwnNetwork


def build():
    """A network of the size that was trained; the numbers are those of the training script."""
    net = ViT(
        in_channels=1,
        img_size=(96, 96),
        patch_size=(16, 16),
        hidden_size=192,
        mlp_dim=768,
        num_layers=6,
        num_heads=6,
        spatial_dims=2,
        classification=False,
    )
    return OwnNetwork(
        module=net, tokens=lambda net, x: net(x)[0], channels=1, image_size=96, mean=0.5, std=0.25
    )
