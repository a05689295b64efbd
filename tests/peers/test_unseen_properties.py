"""What no tensor shows: another activation, other heads, another stride.

A number that is wrong without a word is the one thing that must not happen. Where timm's file states the
property, the tokens are timm's own or the file is refused; where nothing states it, an assumed fact about
that very property may stand in `inspect` instead.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peers import TOLERANCE, disturb, images, timm_network, timm_tokens, train_py_args, write_as_timm

from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.inspect import inspect_checkpoint, render
from dse_monitor.errors import CheckpointError, FeatureError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Deviation:
    """A network that differs from its family's usual one in one property.

    Attributes:
        family: whose usual network it is not.
        what: the property.
        model: timm's name; `usual` where the deviation is a model of its own.
        kwargs: how timm builds it.
        args: what train.py is told.
        change: what a user does to the built network, which no file of timm states.
        facts: names that an assumed fact about the property may have.
    """

    family: str
    what: str
    model: str
    facts: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Any], None] | None = None
    usual: str = ""

    @property
    def id(self):
        return f"{self.family}: {self.what}"


def norms_with(eps):
    def change(network):
        for module in network.modules():
            if isinstance(module, (torch.nn.LayerNorm, torch.nn.modules.batchnorm._BatchNorm)):
                module.eps = eps

    return change


def activations_by(kind):
    def change(network):
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, (torch.nn.GELU, torch.nn.ReLU)):
                    setattr(module, name, kind())

    return change


def stride_in_the_first_convolution(network):
    """As the authors of ResNet had it; torchvision's, usual now, strides in the 3x3 convolution."""
    for layer in (network.layer2, network.layer3, network.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, (1, 1)


def stem_without_stride(network):
    network.conv1.stride = (1, 1)


def stem_pooled_by_its_mean(network):
    network.maxpool = torch.nn.AvgPool2d(3, 2, 1)


def layer_scale_left_out(network):
    for stage in network.stages:
        for block in stage.blocks:
            block.gamma = None


TWO = {"depth": 2}
STAGES = {"depths": (1, 1, 2, 1)}
ROTARY = "position|rope|rotary"
STATISTICS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.3, 0.2]}
VIT, RESNET, SWIN, CONVNEXT = (
    "vit_tiny_patch16_224",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
)

DEVIATIONS = [
    Deviation("vit", "heads", VIT, "heads", {"num_heads": 6}, base=TWO),
    *(
        Deviation("vit", f"activation {name}", VIT, "activation", {"act_layer": name}, base=TWO)
        for name in ("relu", "gelu_tanh", "quick_gelu", "silu")
    ),
    Deviation("vit", "eps", VIT, "eps", base=TWO, change=norms_with(1e-3)),
    Deviation("vit", "rope", "vit_small_patch16_rope_ape_224", ROTARY, base=TWO,
              usual="vit_small_patch16_224"),
    Deviation("vit", "rope, no absolute positions", "vit_small_patch16_rope_224", ROTARY, base=TWO,
              usual="vit_small_patch16_224"),
    Deviation("vit", "rope of a perception encoder", "vit_pe_core_tiny_patch16_384", ROTARY, base=TWO,
              usual=VIT),
    Deviation("vit", "image shape", VIT, "shape|size", {"img_size": (32, 128), "patch_size": 8},
              {"input_size": [3, 32, 128]}, base=TWO),
    Deviation("vit", "layer scale", VIT, "scale", {"init_values": 1e-5}, base=TWO),
    Deviation("vit", "pooling by the mean", VIT, "pool|norm", {"global_pool": "avg"}, base=TWO),
    Deviation("vit", "pooling by attention", VIT, "pool|norm", {"global_pool": "map", "class_token": False},
              base=TWO),
    Deviation("resnet", "activation silu", RESNET, "activation", {"act_layer": "silu"}),
    Deviation("resnet", "activation leaky_relu", RESNET, "activation", {"act_layer": "leaky_relu"}),
    Deviation("resnet", "eps", RESNET, "eps", change=norms_with(1e-1)),
    Deviation("resnet", "stride 8", RESNET, "stride|dilation", {"output_stride": 8}),
    Deviation("resnet", "stride 16", "resnet26", "stride|dilation", {"output_stride": 16}),
    Deviation("resnet", "stride in the first convolution", "resnet26", "stride",
              change=stride_in_the_first_convolution),
    Deviation("resnet", "stem without stride", RESNET, "stride|stem", change=stem_without_stride),
    Deviation("resnet", "pooling in the stem", RESNET, "pool|stem", change=stem_pooled_by_its_mean),
    Deviation("resnet", "blurred strides", "resnetblur18", "pool|stride|blur|anti", usual=RESNET),
    Deviation("resnet", "pooled strides", "resnetaa34d", "pool|stride|blur|anti", usual="resnet34d"),
    Deviation("swin", "heads", SWIN, "heads", {"num_heads": (6, 6, 12, 24)}, base=STAGES),
    Deviation("swin", "activation", SWIN, "activation", base=STAGES, change=activations_by(torch.nn.ReLU)),
    Deviation("swin", "eps", SWIN, "eps", base=STAGES, change=norms_with(1e-3)),
    Deviation("swin", "image shape", SWIN, "shape|size", {"img_size": (96, 160), "window_size": 4},
              {"input_size": [3, 96, 160]}, base=STAGES),
    Deviation("convnext", "activation relu", CONVNEXT, "activation", {"act_layer": "relu"}),
    Deviation("convnext", "activation gelu_tanh", CONVNEXT, "activation", {"act_layer": "gelu_tanh"}),
    Deviation("convnext", "eps", CONVNEXT, "eps", {"norm_eps": 1e-2}),
    Deviation("convnext", "stride 16", CONVNEXT, "stride|dilation", {"output_stride": 16}),
    Deviation("convnext", "layer scale", CONVNEXT, "scale", change=layer_scale_left_out),
]  # fmt: skip


def built(deviation):
    args = train_py_args(deviation.model, {**deviation.base, **deviation.kwargs}, **deviation.args)
    network = timm_network(args)
    if deviation.change:
        deviation.change(network)
        network.eval()
    size = (args.input_size or network.pretrained_cfg["input_size"])[1:]
    return args, network, images(tuple(size))


def check_that_it_matters(deviation, network, pixels, expected):
    """Where the usual network takes the same tensors, its tokens are others: else the test could not fail."""
    import timm

    usual = timm.create_model(deviation.usual or deviation.model, **deviation.base).eval()
    try:
        usual.load_state_dict(network.state_dict())
        tokens = timm_tokens(usual, pixels)
    except (RuntimeError, AssertionError):
        return  # the deviation shows in the tensors, or in the size of the images
    if tokens.shape == expected.shape:
        change = float((tokens - expected).abs().max() / expected.std())
        assert change > 5 * TOLERANCE, (
            f"{deviation.id} changes tokens by {change:.1e} of their deviation only"
        )


def equal(encoder, pixels, expected):
    try:
        found = encoder.dense_tokens(pixels)
    except FeatureError:
        return False
    if found.shape != expected.shape:
        return False
    return float((found - expected).abs().max()) <= TOLERANCE * float(expected.std())


@pytest.mark.parametrize("deviation", [d for d in DEVIATIONS if not d.change], ids=lambda d: d.id)
def test_a_stated_property_is_followed_or_refused(deviation, tmp_path, record_property):
    args, network, pixels = built(deviation)
    expected = timm_tokens(network, pixels)
    check_that_it_matters(deviation, network, pixels, expected)
    path = write_as_timm(network, args, tmp_path)
    try:
        encoder = load_encoder(path)
    except CheckpointError as error:
        record_property("outcome", f"refused: {error}")
        return
    same = equal(encoder, pixels, expected)
    assert same, f"{deviation.id}: read as {encoder.arch}, and its tokens are others"
    record_property("outcome", "equal")


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda d: d.id)
def test_a_property_that_nothing_states_is_seen_or_refused_or_said_to_be_assumed(
    deviation, tmp_path, record_property
):
    _, network, pixels = built(deviation)
    expected = timm_tokens(network, pixels)
    check_that_it_matters(deviation, network, pixels, expected)
    path = tmp_path / "checkpoint_3.pth"
    torch.save({"epoch": 3, "model": network.state_dict()}, path)
    try:
        encoder = load_encoder(path)
    except CheckpointError as error:
        record_property("outcome", f"refused: {error}")
        return
    if equal(encoder, pixels, expected):
        record_property("outcome", "equal")
        return
    words = deviation.facts
    if re.search("stride|pool", words):  # one fact tells of all that makes a map smaller
        words += "|downsampling"
    assumed = [fact for fact in encoder.facts if fact.assumed and re.search(words, fact.name)]
    named = [fact.name for fact in encoder.facts if fact.assumed]
    assert assumed, (
        f"{deviation.id}: read as {encoder.arch}, its tokens are others, and only {named} are assumed"
    )
    text = " ".join(render(inspect_checkpoint(path)).split())
    assert all(fact.name in text for fact in assumed), (
        f"inspect is silent about {[fact.name for fact in assumed]}"
    )
    assert "not in the weights, ASSUMED" in text
    record_property("outcome", f"assumed: {assumed[0].name}")


FAMILIES = {"vit": (VIT, TWO), "resnet": (RESNET, {}), "swin": (SWIN, STAGES), "convnext": (CONVNEXT, {})}


@pytest.mark.parametrize("family", FAMILIES)
def test_image_statistics_are_taken_from_the_file_or_said_to_be_assumed(family, tmp_path):
    model, kwargs = FAMILIES[family]
    args = train_py_args(model, kwargs, **STATISTICS)
    network = timm_network(args)
    found = load_encoder(write_as_timm(network, args, tmp_path))
    assert found.preprocessing.mean == pytest.approx(STATISTICS["mean"])
    assert found.preprocessing.std == pytest.approx(STATISTICS["std"])
    assert not any(fact.assumed for fact in found.facts if fact.name in ("mean", "std"))
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3, "model": network.state_dict()}, path)
    heads = {"num_heads": 3} if family == "vit" else {}  # which nothing but an option tells
    assumed = {fact.name for fact in load_encoder(path, **heads).facts if fact.assumed}
    assert {"mean", "std"} <= assumed
    given = load_encoder(path, **heads, mean=(0.1, 0.2, 0.3), std=(0.4, 0.3, 0.2))
    assert given.preprocessing.mean == (0.1, 0.2, 0.3)
    assert not any(fact.assumed for fact in given.facts if fact.name in ("mean", "std"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_file_states_is_not_said_to_be_assumed(family, tmp_path):
    """A reader who finds everything marked as assumed stops looking."""
    model, kwargs = FAMILIES[family]
    args = train_py_args(model, kwargs)
    assumed = [
        fact for fact in load_encoder(write_as_timm(timm_network(args), args, tmp_path)).facts if fact.assumed
    ]
    assert not [fact.name for fact in assumed]


def test_disturbed_weights_show_heads_and_norms():
    """The ground of this file: with undisturbed weights other heads change next to nothing."""
    import timm

    pixels = images((224, 224))

    def change_by_heads(prepare):
        torch.manual_seed(0)
        three = prepare(timm.create_model(VIT, depth=2).eval())
        six = timm.create_model(VIT, depth=2, num_heads=6).eval()
        six.load_state_dict(three.state_dict())
        expected = timm_tokens(three, pixels)
        return float((timm_tokens(six, pixels) - expected).abs().max() / expected.std())

    assert change_by_heads(disturb) > 0.1
    assert change_by_heads(disturb) > 10 * change_by_heads(lambda network: network)
