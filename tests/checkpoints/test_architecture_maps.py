"""Residual networks, Swin and ConvNeXt of any shape come back exactly, from every library that names them."""

import pytest
import torch
import torchvision
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt
from torchvision.models.resnet import BasicBlock as TorchvisionBasicBlock
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from dse_monitor.errors import UnknownLayout

SIZE = 64


@pytest.fixture
def randomised():
    """Draws every tensor of a model anew, so that zeros and ones of an initialisation hide nothing."""

    def draw(model):
        generator = torch.Generator().manual_seed(0)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn * 0.2)
        return model.eval()

    return draw


def images(size=SIZE):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def rows(channels_first):
    return channels_first.flatten(2).transpose(1, 2)


NARROW = dict(channels=(8, 16, 24, 32))
RESIDUAL = {
    "basic": (BasicBlock, (1, 2, 1, 1), {}),
    "bottleneck": (Bottleneck, (1, 1, 2, 1), {}),
    "narrow": (BasicBlock, (1, 1, 1, 1), NARROW),
    "narrow bottleneck": (Bottleneck, (2, 1, 1, 1), NARROW),
    "wide": (Bottleneck, (1, 1, 1, 1), dict(base_width=128)),
    "grouped": (Bottleneck, (1, 1, 1, 1), dict(cardinality=32, base_width=4)),
    "deep stem": (Bottleneck, (1, 1, 1, 1), dict(stem_type="deep", stem_width=32)),
    "tiered stem and pooled shortcut": (
        BasicBlock,
        (1, 1, 1, 1),
        dict(stem_type="deep_tiered", stem_width=32, avg_down=True),
    ),
    "squeeze-excitation": (Bottleneck, (1, 1, 1, 1), dict(block_args=dict(attn_layer="se"))),
}


@pytest.mark.parametrize("variant", RESIDUAL, ids=list(RESIDUAL))
def test_residual_tokens_equal_timms(reloaded, randomised, variant):
    block, layers, options = RESIDUAL[variant]
    model = randomised(ResNet(block, layers, num_classes=5, **options))
    encoder = reloaded(model.state_dict())
    with torch.no_grad():
        expected = rows(model.forward_features(images()))
    assert torch.equal(encoder.dense_tokens(images()), expected)
    assert encoder.width == expected.shape[-1]


@pytest.mark.parametrize("block", [TorchvisionBasicBlock, TorchvisionBottleneck], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("stem", [8, 64, 128])
def test_stems_of_any_width(reloaded, randomised, block, stem):
    """SwAV's and VICReg's residual networks widen their stem along; timm's own always has 64 channels."""
    model = TorchvisionResNet(block, [1, 2, 1, 1])
    model.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
    model.bn1 = nn.BatchNorm2d(stem)
    model.inplanes = stem
    model.layer1 = model._make_layer(block, 16, 1)
    model.layer2 = model._make_layer(block, 24, 2, stride=2)
    model.layer3 = model._make_layer(block, 32, 1, stride=2)
    model.layer4 = model._make_layer(block, 40, 1, stride=2)
    encoder = reloaded(randomised(model).state_dict())
    assert torch.allclose(encoder.dense_tokens(images()), torchvision_map(model), atol=1e-5)


@torch.no_grad()
def torchvision_map(model):
    x = model.maxpool(model.relu(model.bn1(model.conv1(images()))))
    return rows(model.layer4(model.layer3(model.layer2(model.layer1(x)))))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_published_residual_networks_are_built_from_their_shapes(reloaded, randomised, name):
    model = randomised(torchvision.models.get_model(name, num_classes=2))
    encoder = reloaded(model.state_dict())
    expected = torchvision_map(model)
    assert torch.allclose(
        encoder.dense_tokens(images()), expected, rtol=1e-4, atol=1e-5 * expected.abs().max()
    )
    assert encoder.arch == name
    assert (encoder.image_size, encoder.num_tokens) == ((224, 224), 49)


def test_small_image_stem_keeps_the_resolution_and_says_so(reloaded, randomised):
    model = TorchvisionResNet(TorchvisionBasicBlock, [1, 1, 1, 1])
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    encoder = reloaded(randomised(model).state_dict())
    assert torch.allclose(encoder.dense_tokens(images()), torchvision_map(model), atol=1e-5)
    assert (encoder.image_size, encoder.num_tokens) == ((32, 32), 16)
    stem = next(fact for fact in encoder.facts if fact.name == "stem")
    assert (stem.value, stem.assumed) == ("stride 1, no max pooling", True)


def test_solo_learn_pads_its_small_stem_by_two(saved, randomised):
    from dse_monitor.checkpoints import load_encoder

    model = TorchvisionResNet(TorchvisionBasicBlock, [1, 1, 1, 1])
    model.conv1 = nn.Conv2d(3, 64, 3, padding=2, bias=False)
    model.maxpool = nn.Identity()
    state = {f"backbone.{name}": value for name, value in randomised(model).state_dict().items()}
    path = saved(
        {
            "state_dict": state,
            "pytorch-lightning_version": "2.1.2",
            "hyper_parameters": {"method": "byol"},
            "epoch": 99,
        },
        "byol-cifar10-abc-ep=99.ckpt",
    )
    encoder = load_encoder(path)
    assert torch.allclose(encoder.dense_tokens(images()), torchvision_map(model), atol=1e-5)
    assert (encoder.source.layout, encoder.epoch) == ("solo-learn", 100)


def test_children_by_number_are_a_residual_network(reloaded, randomised):
    model = randomised(TorchvisionResNet(TorchvisionBottleneck, [1, 1, 1, 1]))
    sequence = nn.Sequential(*list(model.children())[:-2])
    state = {f"backbone.{name}": value for name, value in sequence.state_dict().items()}
    encoder = reloaded(state)
    assert torch.allclose(encoder.dense_tokens(images()), torchvision_map(model), atol=1e-5)


def test_group_norm_is_refused(reloaded):
    state = ResNet(BasicBlock, (1, 1, 1, 1)).state_dict()
    state = {name: value for name, value in state.items() if "running" not in name and "batches" not in name}
    with pytest.raises(UnknownLayout, match="no running statistics"):
        reloaded(state)


def test_networks_of_another_number_of_stages_are_refused(reloaded):
    state = ResNet(BasicBlock, (1, 1, 1, 1)).state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("layer4.")}
    with pytest.raises(UnknownLayout, match="3 stages"):
        reloaded(state)


def test_counters_missing_in_old_files_do_not_matter(reloaded, randomised):
    model = randomised(ResNet(BasicBlock, (1, 1, 1, 1), num_classes=0))
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    with torch.no_grad():
        expected = rows(model.forward_features(images()))
    assert torch.equal(reloaded(state).dense_tokens(images()), expected)


SWIN = dict(img_size=SIZE, patch_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 4), num_classes=3)


@pytest.mark.parametrize("window", [2, 4, 7, 8])
def test_swin_tokens_equal_timms(reloaded, randomised, window):
    model = randomised(SwinTransformer(**SWIN, window_size=window, strict_img_size=False))
    encoder = reloaded(model.state_dict())
    with torch.no_grad():
        expected = model.forward_features(images()).flatten(1, 2)
    assert torch.allclose(encoder.dense_tokens(images()), expected, atol=1e-6)
    assert "heads 2-4" in encoder.arch


def test_swin_windows_shrunk_by_small_images_give_the_image_size_away(reloaded, randomised):
    model = SwinTransformer(
        **{**SWIN, "img_size": 32, "depths": (2, 2, 2), "num_heads": (1, 2, 4)}, window_size=7
    )
    encoder = reloaded(randomised(model).state_dict())
    assert "window 7-4-2" in encoder.arch
    assert (encoder.image_size, encoder.num_tokens) == ((32, 32), 4)
    with torch.no_grad():
        expected = model.forward_features(images(32)).flatten(1, 2)
    assert torch.allclose(encoder.dense_tokens(images(32)), expected, atol=1e-6)


def test_torchvision_swin_gives_its_own_tokens(reloaded, randomised):
    model = TorchvisionSwin([4, 4], 8, [2, 2], [2, 4], [4, 4], num_classes=3)
    encoder = reloaded(randomised(model).state_dict())
    with torch.no_grad():
        expected = model.norm(model.features(images())).flatten(1, 2)
    assert torch.allclose(encoder.dense_tokens(images()), expected, atol=1e-5)


def test_mmpretrain_swin_merges_in_another_order(reloaded, randomised):
    """Its merging unfolds 2x2 neighbours channel by channel; the weights are sorted back."""
    model = randomised(SwinTransformer(**SWIN, window_size=4, strict_img_size=False))
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("layers.1.downsample."):
            channels = value.shape[-1] // 4
            by_neighbour = value.reshape(-1, 2, 2, channels)  # column, row, channel
            value = by_neighbour.permute(0, 3, 2, 1).reshape(value.shape).contiguous()
            name = name.replace("layers.1.", "stages.0.")
        for old, new in (
            ("layers.", "stages."),
            ("patch_embed.proj.", "patch_embed.projection."),
            (".attn.", ".attn.w_msa."),
            (".mlp.fc1.", ".ffn.layers.0.0."),
            (".mlp.fc2.", ".ffn.layers.1."),
        ):
            name = name.replace(old, new)
        state["norm3" + name[4:] if name.startswith("norm.") else name] = value
    encoder = reloaded({"meta": {"epoch": 3}, "state_dict": {f"backbone.{n}": v for n, v in state.items()}})
    assert (encoder.source.layout, encoder.epoch) == ("mmpretrain", 3)
    with torch.no_grad():
        expected = model.forward_features(images()).flatten(1, 2)
        unfolded = nn.Unfold(2, stride=2)(images()[:, :1]).transpose(1, 2)  # rows first, as mmpretrain has it
    assert torch.equal(unfolded[0, 0], images()[0, 0, :2, :2].flatten())
    assert torch.allclose(encoder.dense_tokens(images()), expected, atol=1e-5)


CONVNEXT = dict(depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), num_classes=3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(use_grn=True, ls_init_value=None),
        dict(conv_mlp=True),
        dict(kernel_sizes=3),
        dict(patch_size=2),
        dict(head_norm_first=True, ls_init_value=None),
    ],
    ids=["v1", "v2", "convolutional mlp", "small kernels", "other patches", "norm before pooling"],
)
def test_convnext_tokens_equal_timms(reloaded, randomised, options):
    model = randomised(ConvNeXt(**{**CONVNEXT, **options}))
    encoder = reloaded(model.state_dict())
    with torch.no_grad():
        expected = rows(model.forward_features(images()))
    assert torch.equal(encoder.dense_tokens(images()), expected)


def test_torchvision_convnext_gives_its_own_map(reloaded, randomised):
    widths = [(8, 16), (16, 24), (24, 32), (32, None)]
    model = TorchvisionConvNeXt([CNBlockConfig(width, out, 1) for width, out in widths])
    encoder = reloaded(randomised(model).state_dict())
    with torch.no_grad():
        expected = rows(model.features(images()))
    assert torch.allclose(encoder.dense_tokens(images()), expected, atol=1e-5)


@pytest.mark.parametrize("second", [False, True], ids=["v1", "v2"])
def test_original_convnext_names_are_understood(reloaded, randomised, second):
    model = randomised(ConvNeXt(**CONVNEXT, **(dict(use_grn=True, ls_init_value=None) if second else {})))
    state = {}
    for name, value in model.state_dict().items():
        name = name.replace("stem.", "downsample_layers.0.")
        for stage in range(4):
            name = name.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
        name = name.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        name = name.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        name = name.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        state[name] = value.view(1, 1, 1, -1) if ".grn." in name else value
    with torch.no_grad():
        expected = rows(model.forward_features(images()))
    assert torch.equal(reloaded(state).dense_tokens(images()), expected)


# Lightly's own residual networks, for small images


class Shortcuts(nn.Module):
    """A block with its shortcut, as the CIFAR codes write it: two 3x3 convolutions, or 1x1, 3x3, 1x1."""

    def __init__(self, into, planes, stride, bottleneck):
        super().__init__()
        out = 4 * planes if bottleneck else planes
        layers = [(into, planes, 1, 1), (planes, planes, 3, stride), (planes, out, 1, 1)]
        if not bottleneck:
            layers = [(into, planes, 3, stride), (planes, planes, 3, 1)]
        self.count = len(layers)
        for place, (a, b, kernel, step) in enumerate(layers, 1):
            self.add_module(f"conv{place}", nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{place}", nn.BatchNorm2d(b))
        self.shortcut = nn.Sequential()
        if stride != 1 or into != out:
            self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for place in range(1, self.count + 1):
            y = getattr(self, f"bn{place}")(getattr(self, f"conv{place}")(y))
            y = y.relu() if place < self.count else y
        return (y + self.shortcut(x)).relu()


class SmallImages(nn.Module):
    """3x3 stem of stride one, no pooling, four stages, a linear head."""

    def __init__(self, bottleneck, blocks, base=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, base, 3, padding=1, bias=False), nn.BatchNorm2d(base)
        into = base
        for stage, count in enumerate(blocks):
            row = []
            for index in range(count):
                row.append(Shortcuts(into, base << stage, 2 if stage and not index else 1, bottleneck))
                into = (base << stage) * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*row))
        self.linear = nn.Linear(into, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x


@pytest.mark.parametrize("size", [32, 33, 64])
@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (2, 1, 1, 2)])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_residual_network_with_shortcuts(reloaded, randomised, bottleneck, blocks, size):
    model = randomised(SmallImages(bottleneck, blocks))
    encoder = reloaded({f"backbone.{name}": tensor for name, tensor in model.state_dict().items()})
    assert "3x3 stem" in encoder.arch
    wanted = rows(model(images(size))).detach()
    assert torch.allclose(
        encoder.dense_tokens(images(size)), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())
    )


def test_statistics_of_a_split_batch_norm_are_averaged(reloaded, randomised):
    model = randomised(SmallImages(False, (1, 1, 1, 1)))
    state, generator = model.state_dict(), torch.Generator().manual_seed(2)
    for name, tensor in list(state.items()):
        if name.endswith(("running_mean", "running_var")):
            parts = torch.rand(4, len(tensor), generator=generator) + 0.5
            state[name] = parts.flatten()
            tensor.copy_(parts.mean(0))
    wanted = rows(model(images(32))).detach()
    assert torch.allclose(
        reloaded(state).dense_tokens(images(32)), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet-9", "resnet-18", "resnet-50"])
@pytest.mark.parametrize("splits", [0, 2])
def test_lightlys_own_networks(reloaded, randomised, name, splits):
    library = pytest.importorskip("lightly.models.resnet", reason="lightly is not installed")
    model = randomised(library.ResNetGenerator(name, width=0.5, num_splits=splits))
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.train().eval()  # lightly averages the statistics of the splits on the way
    with torch.no_grad():
        x = model.bn1(model.conv1(images(32))).relu()
        for stage in range(1, 5):
            x = getattr(model, f"layer{stage}")(x)
    wanted = rows(x)
    found = reloaded(state).dense_tokens(images(32))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
