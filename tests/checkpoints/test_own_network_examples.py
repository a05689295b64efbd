"""The files of examples/networks read what their libraries save, and give the tokens those libraries give."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dse_monitor.checkpoints import load_encoder
from dse_monitor.errors import ImagesError
from dse_monitor.evaluation.config import EvaluationConfig, Placement
from dse_monitor.evaluation.evaluator import Evaluator

EXAMPLES = Path(__file__).parents[2] / "examples" / "networks"
WARNS = pytest.mark.filterwarnings("ignore")  # of libraries that others maintain


def example(name):
    """How the example is named on the command line."""
    return f"{EXAMPLES / name}.py:build"


def trained(net, seed=0):
    """A network whose tensors all differ from what its constructor makes."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand(tensor.shape))
    return net.eval()


def images(channels, side):
    return torch.linspace(-1, 1, 2 * channels * side * side).view(2, channels, side, side).sin()


@pytest.fixture
def bands(tmp_path):
    """A folder of images of thirteen bands as a satellite's product has them, and a file that is none."""
    noise = np.random.default_rng(0)
    (tmp_path / "tiles").mkdir()
    for index in range(16):
        tile = noise.integers(0, 4000, (13, 140, 150)) + 200 * noise.integers(0, 9, (13, 1, 1))
        np.save(tmp_path / "tiles" / f"{index:02}.npy", tile.astype(np.uint16))
    (tmp_path / "tiles" / "README.txt").write_text("not an image")
    return tmp_path / "tiles"


@pytest.fixture
def thirteen(saved):
    """A checkpoint of the network of thirteen bands, and the network."""
    import timm

    options = {"in_chans": 13, "img_size": 128, "depth": 4, "num_classes": 0}
    net = trained(timm.create_model("vit_tiny_patch16_224", **options))
    return saved(
        {"model": {f"backbone.{n}": t for n, t in net.state_dict().items()}, "epoch": 3}, "a.pth"
    ), net


def test_thirteen_bands_are_scored_as_the_function_reads_them(thirteen, bands, tmp_path):
    path, net = thirteen
    config = EvaluationConfig(images=bands, num_images=16, network=example("thirteen_bands"))
    evaluate = Evaluator(
        config, Placement(cache=str(tmp_path / "c"), device="cpu", maps=str(tmp_path / "dse"))
    )
    result = evaluate(path)
    assert result.status == "scored", result.reason
    assert (result.source.epoch, result.settings.channels, result.settings.reading != "") == (3, 13, True)
    encoder = load_encoder(path, network=example("thirteen_bands"))
    batch = torch.stack([encoder.transform(file) for file in sorted(bands.glob("*.npy"))[:2]])
    with torch.inference_mode():
        wanted = net.forward_features(batch)[:, 1:]
    torch.testing.assert_close(encoder.dense_tokens(batch), wanted, rtol=0, atol=1e-6)


def test_bands_are_not_chosen_twice(thirteen, bands, tmp_path):
    path, _ = thirteen
    config = EvaluationConfig(images=bands, num_images=16, network=example("thirteen_bands"), scale=10_000.0)
    with pytest.raises(
        ImagesError, match="--bands and --scale have no meaning for a network that has its own"
    ):
        Evaluator(config, Placement(cache=str(tmp_path / "c"), device="cpu"))(path)


@pytest.mark.slow
@WARNS
def test_thirteen_bands_are_read_from_geotiff(thirteen, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(0, 4000, (13, 128, 128)).astype(np.uint16)
    about = {"driver": "GTiff", "count": 13, "height": 128, "width": 128, "dtype": "uint16"}
    with rasterio.open(tmp_path / "a.tif", "w", **about) as file:
        file.write(pixels)
    encoder = load_encoder(thirteen[0], network=example("thirteen_bands"))
    np.testing.assert_allclose(
        encoder.transform(tmp_path / "a.tif"), (pixels / 1e4 - 0.2) / 0.1, rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@WARNS
def test_monai_vit(saved):
    nets = pytest.importorskip("monai.networks.nets")
    sizes = {"hidden_size": 192, "mlp_dim": 768, "num_layers": 6, "num_heads": 6, "spatial_dims": 2}
    net = trained(nets.ViT(in_channels=1, img_size=(96, 96), patch_size=(16, 16), **sizes))
    encoder = load_encoder(saved({"state_dict": net.state_dict(), "epoch": 5}), network=example("monai_vit"))
    with torch.inference_mode():
        wanted = net(images(1, 96))[0]
    torch.testing.assert_close(encoder.dense_tokens(images(1, 96)), wanted, rtol=0, atol=1e-6)
    assert (encoder.epoch, encoder.grid, encoder.preprocessing.mean) == (5, (6, 6), (0.5,))


@pytest.mark.slow
@WARNS
def test_monai_swin_unetr(saved):
    nets = pytest.importorskip("monai.networks.nets")
    net = trained(nets.SwinUNETR(in_channels=1, out_channels=2, feature_size=24, spatial_dims=2))
    encoder = load_encoder(saved(net.state_dict()), network=example("monai_swin_unetr"))
    with torch.inference_mode():
        wanted = net.swinViT(images(1, 96))[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.dense_tokens(images(1, 96)), wanted, rtol=0, atol=1e-5)
    assert (encoder.grid, encoder.width) == ((3, 3), 384)


@pytest.mark.slow
@WARNS
def test_open_clip_tower(saved):
    open_clip = pytest.importorskip("open_clip")
    model = trained(open_clip.create_model("ViT-S-32", pretrained=None))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    path = saved({"epoch": 7, "name": "run", "state_dict": state, "optimizer": {}}, "epoch_7.pt")
    encoder = load_encoder(path, network=example("open_clip_tower"))
    model.visual.output_tokens = True
    with torch.inference_mode():
        _, wanted = model.visual(images(3, 224))
    torch.testing.assert_close(encoder.dense_tokens(images(3, 224)), wanted, rtol=0, atol=1e-5)
    assert (encoder.epoch, encoder.grid) == (7, (7, 7))


@pytest.mark.slow
@WARNS
def test_vit_pytorch_vit(saved):
    vit_pytorch = pytest.importorskip("vit_pytorch")
    sizes = {"image_size": 64, "patch_size": 8, "dim": 96, "depth": 4, "heads": 3, "mlp_dim": 192}
    net = trained(vit_pytorch.ViT(num_classes=10, **sizes))
    encoder = load_encoder(saved(net.state_dict()), network=example("vit_pytorch_vit"))
    seen = []
    net.transformer.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.inference_mode():
        net(images(3, 64))
    torch.testing.assert_close(encoder.dense_tokens(images(3, 64)), seen[0][:, 1:], rtol=0, atol=1e-6)
    assert encoder.grid == (8, 8)
