"""Images reach the network as its maker's own transform would bring them there."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from peers import disturb, refusal, timm_network, train_py_args, write_as_timm
from PIL import Image

from dse_monitor.checkpoints import load_encoder
from dse_monitor.errors import CheckpointError
from dse_monitor.evaluation.images import prepare

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LEVELS = 2.01  # of 255: Pillow's and torchvision's filters round differently
SIZES = [(300, 200), (180, 260), (257, 257), (640, 333), (120, 100), (224, 500), (513, 512), (90, 400)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Waves and noise, so that filters differ, of sizes and ratios that are none of the networks' own."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(64):
        width, height = SIZES[index % len(SIZES)]
        x, y = np.meshgrid(np.linspace(0, 9 + index, width), np.linspace(0, 7, height))
        waves = np.stack([np.sin(x), np.cos(x + y), np.sin(2 * y)], -1) * 90 + 128
        values = waves + generator.normal(0, 4, waves.shape)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02d}.png")
    return folder


def compare(encoder, pictures, cache, maker):
    """Pixels of ours against `maker(picture)`, a tensor [3, h, w] that has its mean and deviation applied."""
    ours = prepare(pictures, encoder.preprocessing, num_images=len(SIZES) * 8, cache=cache)
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (encoder.preprocessing.mean, encoder.preprocessing.std)
    )
    for name, pixels in zip(ours.names, ours.pixels, strict=True):
        with Image.open(pictures / name) as picture:
            expected = maker(picture.convert("RGB"))
        found = (torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 255 - mean) / std
        assert found.shape == expected.shape, (
            f"{name}: {list(found.shape)}, the maker has {list(expected.shape)}"
        )
        levels = float(((found - expected) * std).abs().max() * 255)
        assert levels <= LEVELS, f"{name}: {levels:.1f} of 255 levels apart"


@dataclass(frozen=True)
class Timm:
    """A network of timm and what train.py was told about its images."""

    model: str
    args: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self):
        return "-".join([self.model, *(f"{n}={v}" for n, v in self.args.items())]).replace(" ", "")


SMALL = {"depth": 1, "embed_dim": 96, "num_heads": 3}
TIMM = [
    Timm("vit_tiny_patch16_224", kwargs={"depth": 1}),
    Timm("vit_tiny_patch16_224.augreg_in21k", kwargs={"depth": 1}),
    Timm("vit_base_patch16_clip_quickgelu_224", kwargs=SMALL),
    Timm("vit_base_patch16_siglip_224", kwargs=SMALL),
    Timm("deit_tiny_patch16_224", kwargs={"depth": 1}),
    Timm("tf_efficientnetv2_b0"),
    Timm("resnet18"),
    Timm("convnext_atto"),
    Timm("swinv2_cr_tiny_ns_224", kwargs={"depths": (1, 1, 1, 1)}),
    Timm("resnet18", {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.3, 0.2]}),
    Timm("resnet18", {"mean": [0.5], "std": [0.5], "interpolation": "bilinear"}),
    Timm("resnet18", {"crop_pct": 0.8, "img_size": 160}),
    Timm("resnet18", {"crop_mode": "squash", "crop_pct": 1.0}),
    Timm("resnet18", {"input_size": [3, 96, 160]}),
    Timm("resnet18", {"interpolation": "lanczos"}),
]


@pytest.mark.parametrize("case", TIMM, ids=lambda case: case.id)
def test_pictures_look_as_timms_evaluation_transform_makes_them(case, pictures, tmp_path):
    from timm.data import create_transform, resolve_data_config

    args = train_py_args(case.model, case.kwargs, **case.args)
    model = timm_network(args)
    data = resolve_data_config(vars(args), model=model)
    encoder = load_encoder(write_as_timm(model, args, tmp_path))
    compare(encoder, pictures, tmp_path / "cache", create_transform(**data, is_training=False))


def processor(kind, **settings):
    import transformers

    return getattr(transformers, kind)(**settings)


PROCESSORS = {
    "ViT": ("ViTImageProcessor", {}),
    "BEiT": ("BeitImageProcessor", {}),
    "CLIP": ("CLIPImageProcessor", {}),
    "SigLIP": ("SiglipImageProcessor", {}),
    "DINOv2": (
        "BitImageProcessor",
        {
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    ),
    "DINOv3": ("DINOv3ViTImageProcessor", {}),
    "ConvNeXt": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    "ConvNeXt at 384": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "not normalised": ("ViTImageProcessor", {"do_normalize": False}),
    "own": (
        "ViTImageProcessor",
        {
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.3, 0.2],
            "resample": 3,
            "size": {"height": 96, "width": 160},
        },
    ),
    "whole pixels": (
        "ViTImageProcessor",
        {"rescale_factor": 1.0, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_look_as_the_processor_beside_the_weights_makes_them(name, pictures, tmp_path):
    from transformers import ResNetConfig, ResNetModel

    kind, settings = PROCESSORS[name]
    made = processor(kind, **settings)
    model = disturb(ResNetModel(ResNetConfig(depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], embedding_size=8)))
    model.save_pretrained(tmp_path / "run")
    made.save_pretrained(tmp_path / "run")
    encoder = load_encoder(tmp_path / "run")
    compare(
        encoder,
        pictures,
        tmp_path / "cache",
        lambda p: made(p, return_tensors="pt")["pixel_values"][0].float(),
    )


@pytest.mark.parametrize(
    "crop", [{"crop_mode": "border", "crop_pct": 1.0}, {"crop_mode": "squash", "crop_pct": 0.9}]
)
def test_another_way_to_crop_is_followed_or_refused(crop, pictures, tmp_path):
    """timm pads to keep the border, and may cut the centre out of a squashed picture."""
    from timm.data import create_transform, resolve_data_config

    args = train_py_args("resnet18", **crop)
    model = timm_network(args)
    path = write_as_timm(model, args, tmp_path)
    try:
        encoder = load_encoder(path)
    except CheckpointError:
        refusal(path, crop["crop_mode"])
        return
    transform = create_transform(**resolve_data_config(vars(args), model=model), is_training=False)
    compare(encoder, pictures, tmp_path / "cache", transform)
