"""Networks that only their own library can build: refused with the way out, and read with `--network`."""

import pytest
import torch
from peers import assert_same_tokens, check_telling, disturb, images, installed, refusal, rows

from dse_monitor.checkpoints import load_encoder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def monai_vit():
    from monai.networks.nets import ViT

    return ViT(
        in_channels=1, img_size=(64, 64), patch_size=(8, 8), hidden_size=48, mlp_dim=96, num_layers=2,
        num_heads=4, spatial_dims=2, proj_type="conv",
    )  # fmt: skip


def monai_swin_unetr():
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2, depths=(1, 1, 1, 1))


def lucidrains_vit():
    from vit_pytorch import ViT

    return ViT(
        image_size=64,
        patch_size=8,
        num_classes=10,
        dim=48,
        depth=2,
        heads=3,
        dim_head=16,
        mlp_dim=96,
        channels=4,
    )


def lucidrains_simple_vit():
    from vit_pytorch.simple_vit import SimpleViT

    return SimpleViT(
        image_size=64, patch_size=8, num_classes=10, dim=48, depth=2, heads=3, dim_head=16, mlp_dim=96
    )


# What a user writes: a function that builds the network as it was trained (docs/own_networks.md).
USER_FILES = {
    "MONAI ViT": (
        "monai", monai_vit, 1,
        """
        from dse_monitor import OwnNetwork
        from monai.networks.nets import ViT

        def build():
            net = ViT(in_channels=1, img_size=(64, 64), patch_size=(8, 8), hidden_size=48, mlp_dim=96,
                      num_layers=2, num_heads=4, spatial_dims=2, proj_type="conv")
            return OwnNetwork(module=net, tokens=lambda net, images: net(images)[0], image_size=64)
        """,
        lambda network, pixels: network(pixels)[0],
    ),
    "MONAI SwinUNETR": (
        "monai", monai_swin_unetr, 1,
        """
        from dse_monitor import OwnNetwork
        from monai.networks.nets import SwinUNETR

        def last_map(net, images):
            return net.swinViT(images, net.normalize)[-1]

        def build():
            net = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2,
                            depths=(1, 1, 1, 1))
            return OwnNetwork(module=net, tokens=last_map, image_size=64)
        """,
        lambda network, pixels: rows(network.swinViT(pixels, network.normalize)[-1]),
    ),
    "vit-pytorch ViT": (
        "vit_pytorch", lucidrains_vit, 4,
        """
        import torch
        from dse_monitor import OwnNetwork
        from vit_pytorch import ViT

        def patch_tokens(net, images):
            tokens = net.to_patch_embedding(images)
            first = net.cls_token.expand(len(tokens), -1, -1)
            return net.transformer(torch.cat((first, tokens), 1) + net.pos_embedding)[:, 1:]

        def build():
            net = ViT(image_size=64, patch_size=8, num_classes=10, dim=48, depth=2, heads=3, dim_head=16,
                      mlp_dim=96, channels=4)
            return OwnNetwork(module=net, tokens=patch_tokens, channels=4, image_size=64)
        """,
        None,
    ),
    "vit-pytorch SimpleViT": (
        "vit_pytorch", lucidrains_simple_vit, 3,
        """
        from dse_monitor import OwnNetwork
        from vit_pytorch.simple_vit import SimpleViT

        def patch_tokens(net, images):
            tokens = net.to_patch_embedding(images)
            return net.transformer(tokens + net.pos_embedding.to(tokens))

        def build():
            net = SimpleViT(image_size=64, patch_size=8, num_classes=10, dim=48, depth=2, heads=3,
                            dim_head=16, mlp_dim=96)
            return OwnNetwork(module=net, tokens=patch_tokens, channels=3, image_size=64)
        """,
        None,
    ),
}  # fmt: skip


def from_the_last_block(network, pixels):
    """The maker's own forward pass, caught where its transformer ends."""
    caught = []
    handle = network.transformer.register_forward_hook(lambda module, inputs, output: caught.append(output))
    network(pixels)
    handle.remove()
    return caught[0]


@pytest.fixture(params=USER_FILES)
def case(request, tmp_path):
    """The maker's tokens, its file, and the user's."""
    import textwrap

    library, build, channels, source, tokens = USER_FILES[request.param]
    installed(library)
    torch.manual_seed(0)
    network = disturb(build())
    pixels = images((64, 64), channels)
    with torch.no_grad():
        expected = (tokens or from_the_last_block)(network, pixels)
    if request.param == "vit-pytorch ViT":
        expected = expected[:, 1:]
    check_telling(expected)
    torch.save({"epoch": 3, "model": network.state_dict()}, tmp_path / "checkpoint_3.pth")
    (tmp_path / "mine.py").write_text(textwrap.dedent(source))
    return request.param, tmp_path, pixels, expected


def test_without_the_users_file_the_refusal_names_the_option(case):
    _, folder, _, _ = case
    refusal(folder / "checkpoint_3.pth", "--network")


def test_with_the_users_file_tokens_are_the_makers(case, record_property):
    name, folder, pixels, expected = case
    channels = pixels.shape[1]
    encoder = load_encoder(
        folder / "checkpoint_3.pth",
        network=f"{folder / 'mine.py'}:build",
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
    assert_same_tokens(encoder.dense_tokens(pixels), expected, name, record_property)
    assert encoder.preprocessing.channels == channels


@pytest.mark.parametrize("wrong", ["missing.py:build", "mine.py:absent", "mine.py:fails", "mine.py:other"])
def test_a_users_file_that_does_not_fit_is_named(wrong, case):
    _, folder, _, _ = case
    source = (folder / "mine.py").read_text()
    source += "\ndef fails():\n    raise RuntimeError('no such thing')\n"
    source += "\ndef other():\n    import torch\n    return torch.nn.Conv2d(3, 8, 8, 8)\n"
    (folder / "mine.py").write_text(source)
    causes = {
        "missing.py:build": r"missing\.py", "mine.py:absent": "absent", "mine.py:fails": "no such thing",
        "mine.py:other": r"mine\.py.*(tensors|weights)",
    }  # fmt: skip
    refusal(folder / "checkpoint_3.pth", causes[wrong], network=f"{folder / wrong}")


def test_a_vision_transformer_of_thirteen_bands_needs_their_statistics(tmp_path, record_property):
    """As a user trains it with timm's class and keeps its state dict alone."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = disturb(
        VisionTransformer(img_size=64, embed_dim=96, depth=2, num_heads=3, in_chans=13, num_classes=0)
    )
    path = tmp_path / "checkpoint_3.pth"
    torch.save({"epoch": 3, "model": vit.state_dict()}, path)
    refusal(path, "--mean", "--std", "13", num_heads=3)
    mean, std = tuple(0.01 * band for band in range(13)), (0.1,) * 13
    encoder = load_encoder(path, num_heads=3, mean=mean, std=std)
    pixels = images((64, 64), 13)
    with torch.no_grad():
        expected = vit.forward_features(pixels)[:, 1:]
    assert_same_tokens(encoder.dense_tokens(pixels), expected, "13 bands", record_property)
    assert (encoder.preprocessing.channels, encoder.preprocessing.mean) == (13, mean)
