"""A timm ViT for thirteen bands, as of Sentinel-2, on `.npy` or GeoTIFF images of reflectance x 10,000."""

import numpy as np
import timm
import torch

from dse_monitor import OwnNetwork

SIZE, BANDS = 128, 13


def read(path):
    """[13, SIZE, SIZE]: the middle of the image, as reflectance, standardised as in training."""
    if path.suffix == ".npy":
        image = np.load(path)
    else:
        import rasterio

        with rasterio.open(path) as file:
            image = file.read()
    top, left = ((side - SIZE) // 2 for side in image.shape[1:])
    middle = image[:, top : top + SIZE, left : left + SIZE].astype(np.float32)
    return torch.from_numpy((middle / 10_000 - 0.2) / 0.1)


def build():
    """The network that was trained."""
    net = timm.create_model("vit_tiny_patch16_224", in_chans=BANDS, img_size=SIZE, depth=4, num_classes=0)
    return OwnNetwork(
        module=net,
        tokens=lambda net, images: net.forward_features(images)[:, 1:],
        image_size=SIZE,
        transform=read,
        suffixes=(".npy", ".tif", ".tiff"),
    )
