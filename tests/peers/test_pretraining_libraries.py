"""Encoders of solo-learn, mmpretrain, Lightly and open_clip, in files as their trainings leave them."""

import json
import warnings

import pytest
import torch
from peers import assert_same_tokens, disturb, images, installed, refusal, rows, timm_tokens

from dse_monitor.checkpoints import load_encoder
from dse_monitor.errors import CheckpointError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IMAGES = images((64, 64))


def solo_vit(width, **others):
    """What solo-learn builds for MoCo v3: timm's class, and 12 heads at any width
    (solo/backbones/vit/vit_mocov3.py of vturrisi/solo-learn at 9187ee3). Two blocks of its twelve.
    """
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    options = {"img_size": 64, "embed_dim": width, "depth": 2, "num_heads": 12, "num_classes": 0, **others}
    return disturb(VisionTransformer(**options))


def lightning_file(path, hyper_parameters, **networks):
    """What `trainer.save_checkpoint` writes after one epoch of a module with these networks."""
    lightning = pytest.importorskip("lightning.pytorch")

    class Method(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            if hyper_parameters:
                self.save_hyperparameters(hyper_parameters)
            for name, network in networks.items():
                setattr(self, name, network)
            self.classifier = torch.nn.Linear(4, 2)

        def training_step(self, batch, index):
            return self.classifier(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.classifier.parameters(), lr=0.0)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(2, 4)))
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet)
        trainer.fit(Method(), data)
    trainer.save_checkpoint(path)
    for network in networks.values():
        network.eval()
    return path


def solo_config(name, **kwargs):
    return {
        "name": "mocov3-vit", "method": "mocov3", "backbone": {"name": name, "kwargs": kwargs},
        "data": {"dataset": "imagenet100"}, "max_epochs": 400,
    }  # fmt: skip


WIDTHS = {"vit_tiny": 192, "vit_small": 384, "vit_base": 768}


@pytest.mark.parametrize("name", WIDTHS)
def test_solo_learns_mocov3_as_its_checkpointer_leaves_it(name, tmp_path, record_property):
    """Its file holds no hyper-parameters, since solo-learn does not save any; args.json lies beside it."""
    vit = solo_vit(WIDTHS[name])
    path = lightning_file(
        tmp_path / "mocov3-vit-offline-a1b2-ep=0.ckpt", None, backbone=vit, momentum_backbone=vit
    )
    (tmp_path / "args.json").write_text(json.dumps(solo_config(name, img_size=64)))
    encoder = load_encoder(path)
    assert_same_tokens(encoder.dense_tokens(IMAGES), timm_tokens(vit, IMAGES), name, record_property)
    assert encoder.source.encoder == "backbone"


@pytest.mark.parametrize("name", WIDTHS)
def test_solo_learns_mocov3_with_its_configuration_in_the_file(name, tmp_path, record_property):
    vit = solo_vit(WIDTHS[name])
    path = lightning_file(
        tmp_path / "x-ep=0.ckpt", solo_config(name, img_size=64), backbone=vit, momentum_backbone=vit
    )
    encoder = load_encoder(path)
    assert_same_tokens(encoder.dense_tokens(IMAGES), timm_tokens(vit, IMAGES), name, record_property)


def test_solo_learns_other_methods_keep_the_usual_heads(tmp_path, record_property):
    vit = solo_vit(384, num_heads=6)
    config = {**solo_config("vit_small", img_size=64), "method": "byol"}
    path = lightning_file(tmp_path / "x-ep=0.ckpt", config, backbone=vit, momentum_backbone=vit)
    encoder = load_encoder(path)
    assert_same_tokens(encoder.dense_tokens(IMAGES), timm_tokens(vit, IMAGES), "byol", record_property)


# mmpretrain's own names of a vision transformer (mmpretrain/models/backbones/vision_transformer.py of
# open-mmlab/mmpretrain at 00030e3), by those of timm.
MM_NAMES = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.", "layers."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
)
MM_CONFIG = """auto_scale_lr = dict(base_batch_size=4096)
model = dict(
    backbone=dict(
        arch={arch!r},
        img_size=64,
        norm_eval=False,
        patch_size=16,
        stop_grad_conv1=True,
        type='MoCoV3ViT'),
    base_momentum=0.01,
    data_preprocessor=dict(
        mean=[
            127.5,
            127.5,
            127.5,
        ],
        std=[
            51.0,
            51.0,
            51.0,
        ],
        to_rgb=True,
        type='SelfSupDataPreprocessor'),
    head=dict(temperature=0.2, type='MoCoV3Head'),
    type='MoCoV3')
train_cfg = dict(max_epochs=300, type='EpochBasedTrainLoop')
"""


def mm_state(vit):
    def renamed(name):
        for ours, theirs in MM_NAMES:
            name = name.replace(ours, theirs)
        return "ln1." + name[5:] if name.startswith("norm.") else name

    return {renamed(name): value for name, value in vit.state_dict().items()}


MM_ARCHS = {"mocov3-s": (384, 12), "deit-small": (384, 6), "deit-tiny": (192, 3), "base": (768, 12)}


@pytest.mark.parametrize("arch", MM_ARCHS)
def test_mmpretrains_mocov3_as_mmengine_saves_it(arch, tmp_path, record_property):
    """Its Runner keeps the whole configuration as text in meta.cfg (mmengine/runner/runner.py)."""
    width, heads = MM_ARCHS[arch]
    vit = solo_vit(width, num_heads=heads)
    backbone = {"backbone." + name: value for name, value in mm_state(vit).items()}
    momentum = {"momentum_encoder.module.0." + name: value for name, value in mm_state(vit).items()}
    meta = {
        "epoch": 7, "iter": 700, "cfg": MM_CONFIG.format(arch=arch), "seed": 0,
        "experiment_name": "mocov3_20261101_000000", "time": "20261101_010000", "mmengine_version": "0.10.7",
    }  # fmt: skip
    content = {"meta": meta, "state_dict": {**backbone, **momentum}, "message_hub": {}, "optimizer": {}}
    torch.save(content, tmp_path / "epoch_7.pth")
    encoder = load_encoder(tmp_path / "epoch_7.pth")
    assert_same_tokens(encoder.dense_tokens(IMAGES), timm_tokens(vit, IMAGES), arch, record_property)
    assert encoder.epoch == 7
    assert encoder.preprocessing.mean == pytest.approx((0.5, 0.5, 0.5))
    assert encoder.preprocessing.std == pytest.approx((0.2, 0.2, 0.2))


def lightly_resnet():
    generator = installed("lightly.models").ResNetGenerator
    torch.manual_seed(0)
    return disturb(generator("resnet-18", width=0.25), run=lambda network: network(images((32, 32))))


@torch.no_grad()
def test_lightlys_own_resnet(tmp_path, record_property):
    """ResNetGenerator builds networks for small images: a stem of 3x3, no pooling, and other names."""
    network = lightly_resnet()
    expected = torch.relu(network.bn1(network.conv1(IMAGES)))
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        expected = layer(expected)
    torch.save({"model": network.state_dict()}, tmp_path / "whole.pth")
    encoder = load_encoder(tmp_path / "whole.pth")
    assert_same_tokens(encoder.dense_tokens(IMAGES), rows(expected), "resnet-18", record_property)


@torch.no_grad()
def test_lightlys_own_resnet_as_a_sequence_lacks_an_activation(tmp_path, record_property):
    """Its tutorials take the children in a row and lose the ReLU after the stem, a function there."""
    from lightly.models.utils import deactivate_requires_grad

    backbone = torch.nn.Sequential(*list(lightly_resnet().children())[:-1], torch.nn.AdaptiveAvgPool2d(1))
    deactivate_requires_grad(backbone)
    path = tmp_path / "sequence.pth"
    torch.save({"model": {"backbone." + name: value for name, value in backbone.state_dict().items()}}, path)
    try:
        encoder = load_encoder(path)
    except CheckpointError:
        refusal(path, "resnet")
        return
    assert_same_tokens(
        encoder.dense_tokens(IMAGES), rows(backbone[:-1](IMAGES)), "resnet-18", record_property
    )


@pytest.mark.parametrize("quick", [True, False], ids=["quick_gelu", "gelu"])
@pytest.mark.parametrize("tower", ["own", "timm"])
def test_towers_of_open_clip_in_the_files_of_its_training(tower, quick, tmp_path, record_property):
    """epoch_N.pt as its training loop writes it; the configuration lies beside the folder, in params.txt."""
    open_clip = installed("open_clip")
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    if tower == "timm" and quick:
        pytest.skip("a tower of timm has timm's activation, whatever the text tower has")
    own = {"layers": 2, "width": 128, "head_width": 64, "patch_size": 16}
    timms = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "timm_pool": "token"}
    vision = CLIPVisionCfg(image_size=64 if tower == "own" else 224, **(own if tower == "own" else timms))
    text = CLIPTextCfg(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    torch.manual_seed(0)
    model = disturb(CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text, quick_gelu=quick))
    name = "ViT-tiny-quickgelu" if quick else "ViT-tiny"
    folder = tmp_path / f"2026_11_01-model_{name}-lr_0.001-b_64-j_4-p_amp"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "params.txt").write_text(f"force_quick_gelu: {quick}\nimage_mean: None\nmodel: {name}\n")
    path = folder / "checkpoints" / "epoch_7.pt"
    torch.save({"epoch": 7, "name": folder.name, "state_dict": model.state_dict(), "optimizer": {}}, path)
    pixels = images((64, 64)) if tower == "own" else images((224, 224))
    with torch.no_grad():
        if tower == "timm":
            expected = timm_tokens(model.visual.trunk, pixels)
        else:
            model.visual.output_tokens = True  # (pooled, tokens), the latter after ln_post
            expected = model.visual(pixels)[1]
    refusal(path, "heads", "--num-heads")  # its files do not say how many, and widths do not tell
    encoder = load_encoder(path, num_heads=2 if tower == "own" else 3)
    assert_same_tokens(encoder.dense_tokens(pixels), expected, name, record_property)
    assert encoder.epoch == 7
    assert open_clip.__version__


def test_open_clip_without_its_params_is_refused_for_its_activation(tmp_path):
    """Nothing in the weights tells quick GELU from GELU, and both are common."""
    installed("open_clip")
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=2, width=128, head_width=64, patch_size=16, image_size=64)
    text = CLIPTextCfg(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    model = disturb(CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text, quick_gelu=True))
    path = tmp_path / "epoch_7.pt"
    torch.save({"epoch": 7, "name": "run", "state_dict": model.state_dict(), "optimizer": {}}, path)
    refusal(path, "quick-GELU", "--arch", num_heads=2)
