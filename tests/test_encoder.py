"""Images in, dense tokens out: normalisation, micro-batches, running out of memory, sizes, precision."""

import numpy as np
import pytest
import torch
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dse_monitor.checkpoints.families.network import Hints
from dse_monitor.checkpoints.load import assembled
from dse_monitor.checkpoints.recognition.architecture import build, recognise
from dse_monitor.checkpoints.recognition.preparation import preprocessing
from dse_monitor.encoder import MICRO_BATCH
from dse_monitor.errors import DeviceError, FeatureError
from dse_monitor.runs.record import Source

SIZE = 16


def encoder_of(family, model, **hints):
    model.eval()
    state = model.state_dict()
    network = recognise(family, {name: tuple(t.shape) for name, t in state.items()}, Hints(**hints))
    module = build(network)
    module.load_state_dict(state, assign=True)
    source = Source(path="model.pth", epoch=3.0, step=70, layout="plain", arch=network.description)
    return assembled(module, network, source, preprocessing=preprocessing(network, {})[0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=SIZE, patch_size=4, embed_dim=24, depth=2, num_heads=4, num_classes=0
    ).eval()


@pytest.fixture
def encoder(model):
    return encoder_of("vit", model, num_heads=4)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 3), dtype=np.uint8)


class Cramped(nn.Module):
    """Runs out of memory whenever a batch exceeds what fits."""

    num_prefix_tokens = 0

    def __init__(self, fits):
        super().__init__()
        self.fits = fits
        self.seen = []

    def forward_features(self, images):
        self.seen.append(len(images))
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")
        return images.flatten(2).transpose(1, 2)


def cramped(encoder, fits):
    encoder.module = Cramped(fits)
    return encoder


def test_facts_of_the_source_are_at_hand(encoder):
    assert (encoder.epoch, encoder.step, encoder.image_size) == (3.0, 70, (SIZE, SIZE))
    assert (encoder.num_tokens, encoder.width) == (16, 24)
    assert encoder.preprocessing.mean == (0.485, 0.456, 0.406)
    assert "vit 24x2, 4 heads, patch 4" in repr(encoder)


def test_pixels_are_normalised_with_the_networks_statistics(model, encoder, pixels):
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    statistics = encoder.preprocessing.mean, encoder.preprocessing.std
    mean, std = (torch.tensor(each, dtype=torch.double).view(3, 1, 1) for each in statistics)
    with torch.no_grad():
        expected = model.forward_features(((images - mean) / std).float())[:, 1:]
    tokens = encoder.encode(pixels)
    assert tokens.dtype == torch.float32
    assert torch.allclose(tokens, expected, atol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 3, 10, 64])
def test_tokens_do_not_depend_on_the_micro_batch(encoder, pixels, micro_batch):
    assert torch.allclose(
        encoder.encode(pixels, micro_batch=micro_batch), encoder.encode(pixels, micro_batch=5), atol=1e-6
    )


def test_progress_reports_images_done(encoder, pixels):
    calls = []
    encoder.encode(pixels, micro_batch=4, progress=lambda *call: calls.append(call))
    assert calls == [(4, 10), (8, 10), (10, 10)]


def test_read_only_images_need_no_copy_of_all(encoder, pixels, tmp_path):
    np.save(tmp_path / "pixels.npy", pixels)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    assert torch.equal(encoder.encode(mapped), encoder.encode(pixels))


def test_tensors_of_pixels_are_welcome(encoder, pixels):
    assert torch.equal(encoder.encode(torch.from_numpy(pixels)), encoder.encode(pixels))


def test_micro_batch_is_halved_until_it_fits_and_stays_small(encoder, pixels):
    tokens = cramped(encoder, fits=2).encode(pixels, micro_batch=8)
    assert encoder.module.seen == [8, 4, 2, 2, 2, 2, 2]
    assert torch.equal(tokens, cramped(encoder, fits=100).encode(pixels))


def test_default_micro_batch_larger_than_the_images_is_halved_from_what_was_tried(encoder, pixels):
    cramped(encoder, fits=1).encode(pixels)
    assert encoder.module.seen[:4] == [10, 5, 2, 1]
    assert MICRO_BATCH["cpu"] > len(pixels)


def test_no_room_for_one_image_says_what_to_do(encoder, pixels):
    with pytest.raises(
        DeviceError, match=r"cpu has no room for a single image through vit 24x2.*--device cpu"
    ):
        cramped(encoder, fits=0).encode(pixels)


def test_other_errors_are_not_taken_for_lack_of_memory(encoder, pixels):
    def fail(images):
        raise RuntimeError("something else")

    encoder.module.forward_features = fail
    with pytest.raises(RuntimeError, match="something else"):
        encoder.encode(pixels)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_close_and_returns_float32(encoder, pixels, precision):
    exact, half = encoder.encode(pixels), encoder.encode(pixels, precision=precision)
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    assert torch.allclose(half, exact, atol=0.1)


def test_no_gradients_and_evaluation_mode(encoder):
    tokens = encoder.dense_tokens(torch.zeros(1, 3, SIZE, SIZE))
    assert not tokens.requires_grad
    assert not encoder.module.training
    tokens += 1  # an ordinary tensor, open to in-place changes


def test_images_of_another_size_are_refused_where_positions_are_learned(encoder):
    with pytest.raises(FeatureError, match=r"16 x 16 pixels and was given 20 x 20; leave --image-size out"):
        encoder.dense_tokens(torch.zeros(1, 3, 20, 20))


def test_maps_take_any_size():
    encoder = encoder_of("resnet", ResNet(BasicBlock, (1, 1, 1, 1), num_classes=0))
    assert encoder.dense_tokens(torch.zeros(1, 3, 64, 96)).shape == (1, 6, 512)


def test_map_positions_run_row_by_row():
    model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=0).eval()
    encoder = encoder_of("resnet", model)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        feature_map = model.forward_features(images)
    assert torch.equal(encoder.dense_tokens(images)[0, 1 * 3 + 2], feature_map[0, :, 1, 2])


def test_no_images_give_no_tokens(encoder):
    assert encoder.encode(np.zeros((0, SIZE, SIZE, 3), np.uint8)).shape == (0, 16, 24)


@pytest.mark.parametrize("kind", ["uint16", "uint16 tensor", "float32", "float32 tensor", "normalised"])
def test_pixels_of_every_type_are_the_same_images(encoder, pixels, kind):
    expected = encoder.encode(pixels)
    deep = pixels.astype(np.uint16) * 257  # 255 becomes 65,535
    unit = pixels.astype(np.float32) / 255
    given = {
        "uint16": deep,
        "uint16 tensor": torch.from_numpy(deep),
        "float32": unit,
        "float32 tensor": torch.from_numpy(unit),
        "normalised": ((unit - encoder.preprocessing.mean) / encoder.preprocessing.std).astype(np.float32),
    }[kind]
    found = encoder.encode(given, normalised=kind == "normalised", micro_batch=3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # float32 rounding of the pixels


def test_normalised_pixels_are_left_alone(encoder, pixels):
    unit = pixels.astype(np.float32) / 255
    with torch.no_grad():
        expected = encoder.dense_tokens(torch.from_numpy(unit).permute(0, 3, 1, 2))
    torch.testing.assert_close(encoder.encode(unit, normalised=True), expected)
    with pytest.raises(ValueError, match=r"must be float32 \[n, H, W, 3\], not uint8"):
        encoder.encode(pixels, normalised=True)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((1, SIZE, SIZE, 3), np.float64), "uint8 or uint16 or float32"),
        (np.zeros((1, 3, SIZE, SIZE), np.uint8), r"\[n, H, W, 3\]"),
    ],
)
def test_wrong_pixels_are_an_argument_error(encoder, bad, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode(bad)


def test_wrong_arguments_are_named(encoder, pixels):
    with pytest.raises(ValueError, match=r"float32, bfloat16, float16.*'int8'"):
        encoder.encode(pixels, precision="int8")
    with pytest.raises(ValueError, match="at least 1"):
        encoder.encode(pixels, micro_batch=-1)
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        encoder.dense_tokens(torch.zeros(3, SIZE, SIZE))


def test_missing_device_is_named(encoder):
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(DeviceError, match=r"could not be moved to cuda.*--device"):
        encoder.to("cuda:7")
