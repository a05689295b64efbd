"""What a family says its network holds is what timm builds: inspect relies on it and builds nothing."""

import dataclasses

import pytest
import timm
import torch

from dse_monitor.checkpoints import families, load_encoder
from dse_monitor.checkpoints.families.network import Hints, NotThisNetwork, Stated
from dse_monitor.checkpoints.recognition import architecture
from dse_monitor.checkpoints.recognition.dialects import HEADS
from dse_monitor.errors import AmbiguousArchitecture, UnknownLayout

MODULES = {
    "vit": ("vision_transformer", "deit"),
    "dinov3": ("eva",),
    "resnet": ("resnet",),
    "swin": ("swin_transformer",),
    "convnext": ("convnext",),
}
# Of timm's models; those of other kinds (relative positions, group norm, other stems, ...) are refused.
UNDERSTOOD = {"vit": 150, "dinov3": 30, "resnet": 70, "swin": 9, "convnext": 25}


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check(family, name):
    """Whether timm's model is understood; then its tensors, their order and its size must be as foretold."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    encoder = {key: shape for key, shape in shapes_of(model).items() if key.split(".")[0] not in HEADS}
    blocks = getattr(model, "blocks", None)
    heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None
    try:
        stated = {"activation": Stated("gelu", "no tensor")} if family == "vit" else {}
        network = architecture.recognise(family, encoder, Hints(num_heads=heads, stated=stated))
    except (NotThisNetwork, AmbiguousArchitecture):
        return False
    with torch.device("meta"):
        built = network.build()
    assert list(network.tensors.items()) == list(shapes_of(built).items()), name
    assert network.parameters == sum(parameter.numel() for parameter in built.parameters()), name
    return True


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("vit", "vit_small_patch14_reg4_dinov2"),
        ("vit", "vit_tiny_patch16_224"),
        ("dinov3", "vit_small_patch16_dinov3_qkvb"),
        ("dinov3", "vit_small_plus_patch16_dinov3"),
        ("resnet", "resnet18"),
        ("resnet", "seresnext26d_32x4d"),
        ("resnet", "wide_resnet50_2"),
        ("swin", "swin_tiny_patch4_window7_224"),
        ("convnext", "convnextv2_atto"),
        ("convnext", "convnext_pico"),
    ],
)
def test_tensors_are_known_without_building(family, name):
    assert check(family, name)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", MODULES)
def test_tensors_of_every_model_of_timm_are_known_without_building(family):
    names = [name for module in MODULES[family] for name in timm.list_models(module=module)]
    assert sum(check(family, name) for name in names) >= UNDERSTOOD[family]


def test_a_family_that_does_not_say_its_tensors_is_built_to_see(monkeypatch):
    with torch.device("meta"):
        shapes = shapes_of(timm.create_model("resnet18", num_classes=0))
    told = architecture.recognise("resnet", shapes, Hints())
    recognise = families.load("resnet").recognise
    silent = families.Family(
        lambda *given: dataclasses.replace(recognise(*given), tensors={}, buffers=frozenset())
    )
    monkeypatch.setattr(families, "load", lambda name: silent)
    seen = architecture.recognise("resnet", shapes, Hints())
    assert (seen.tensors, seen.buffers, seen.parameters) == (told.tensors, told.buffers, told.parameters)


def test_another_release_of_timm_is_noticed_before_weights_are_read(write_checkpoint, tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "checkpoint_0004.pth")
    build = architecture.build

    def other_timm(network):
        return build(dataclasses.replace(network, tensors={**network.tensors, "gate.weight": (3,)}))

    monkeypatch.setattr(architecture, "build", other_timm)
    with pytest.raises(UnknownLayout, match=r"installed timm builds .* such as gate\.weight"):
        load_encoder(path)
