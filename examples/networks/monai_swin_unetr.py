"""MONAI's Swin UNETR in 2D: the deepest map of its Swin encoder; the decoder in the file stays unread."""

from monai.networks.nets import SwinUNETR

from dse_monitor import OwnNetwork


def build():
    """The encoder alone, `swinViT` in the file; it was trained on intensities scaled to [0, 1]."""
    whole = SwinUNETR(in_channels=1, out_channels=2, feature_size=24, spatial_dims=2)
    return OwnNetwork(
        module=whole.swinViT,
        tokens=lambda encoder, images: encoder(images)[
            -1
        ],  # [B, D, rows, columns], normalised by the encoder
        prefix="swinViT.",
        channels=1,
        image_size=96,
        mean=0.0,
        std=1.0,
    )
