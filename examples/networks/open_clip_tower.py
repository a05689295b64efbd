"""The image tower of an OpenCLIP model that was trained with open_clip_train: patch tokens before pooling."""

import open_clip

from dse_monitor import OwnNetwork

MODEL = "ViT-S-32"


def build():
    """The visual part of the model; the text part lies beside it in the file."""
    net = open_clip.create_model(MODEL, pretrained=None).visual
    net.output_tokens = True  # (pooled, patches after the last norm)

    return OwnNetwork(
        module=net,
        tokens=lambda net, images: net(images)[1],
        prefix="visual.",
        image_size=net.image_size,
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
    )
