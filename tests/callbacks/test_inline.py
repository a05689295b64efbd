"""DSE of a live network: the same numbers as the metric gives, and no trace in the network or in chance."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dse_monitor.callbacks.inline import InlineDSE, dense_tokens
from dse_monitor.metric import average, measure

VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 0}


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **VIT)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("vit_tiny_patch16_224", VIT, (16, 24)),
        ("deit_tiny_distilled_patch16_224", {**VIT, "depth": 1}, (16, 24)),  # two leading tokens
        ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, (1, 8)),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "depths": (1, 1), "num_heads": (1, 2), "embed_dim": 8, "window_size": 4},
            (16, 16),
        ),
    ],
)
def test_tokens_of_timm_networks_are_found(name, options, shape, images):
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        assert dense_tokens(model, images[:2]).shape == (2, *shape)


def test_maps_are_read_row_by_row(images):
    model = timm.create_model("resnet18", layers=[1, 1, 1, 1], channels=[8, 8, 8, 8]).eval()
    large = images[:1].repeat(1, 1, 2, 2)
    with torch.no_grad():
        maps = model.forward_features(large)
        assert torch.equal(dense_tokens(model, large)[0, 1], maps[0, :, 0, 1])


def test_network_of_unknown_kind_is_refused_with_advice(images):
    with pytest.raises(ValueError, match=r"Sequential is no timm or Hugging Face.*tokens="):
        dense_tokens(nn.Sequential(nn.Flatten()), images)


@pytest.mark.parametrize("form", ["tensor", "dataset", "loader", "mappings"])
def test_numbers_are_those_of_the_metric_on_the_same_tokens(form, vit, images):
    given = {
        "tensor": images,
        "dataset": TensorDataset(images, torch.arange(24)),
        "loader": DataLoader(TensorDataset(images), batch_size=7),
        "mappings": [{"pixel_values": part} for part in images.split(5)],
    }[form]
    found = InlineDSE(images=given, batch=8, micro_batch=5)(vit)
    with torch.no_grad():
        tokens = dense_tokens(vit.eval(), images)
    expected = average([measure(part) for part in tokens.split(8)])
    assert found.images == 24
    assert found.dse() == pytest.approx(expected.dse(), rel=1e-4)  # other batches in the matrix products


def test_images_beyond_the_last_whole_batch_are_left_out(vit, images):
    assert InlineDSE(images=images, batch=10)(vit).images == 20
    assert InlineDSE(images=images, batch=100)(vit).images == 24


def test_shuffling_loader_gives_the_same_numbers_every_time(vit, images):
    inline = InlineDSE(images=DataLoader(TensorDataset(images), batch_size=8, shuffle=True))
    first = inline(vit)
    torch.rand(3)
    assert inline(vit) == first


class Draws(nn.Module):
    """Uses every kind of chance, and has statistics and modes that could be spoilt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, 8)
        self.norm = nn.BatchNorm2d(8)
        self.frozen = nn.BatchNorm2d(8).eval()


def draw(model: Draws, images: torch.Tensor) -> torch.Tensor:
    assert not model.training
    assert not torch.is_grad_enabled()
    noise = torch.rand(()) + random.random() + np.random.rand()
    maps = model.frozen(model.norm(model.conv(images + noise)))
    return maps.flatten(2).transpose(1, 2)


def test_measuring_leaves_no_trace(images):
    model = Draws()
    model.norm(model.conv(images)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradient = model.conv.weight.grad
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    modes = [module.training for module in model.modules()]
    InlineDSE(images=images, tokens=draw)(model)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[2], strict=True))
    assert [module.training for module in model.modules()] == modes == [True, True, True, False]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.conv.weight.grad is gradient
    assert torch.is_grad_enabled()


def test_modes_come_back_when_measuring_fails(images):
    model = Draws()
    with pytest.raises(ValueError, match=r"tokens\(\) returned \[24, 3, 32, 32\]"):
        InlineDSE(images=images, tokens=lambda model, images: images)(model)
    assert model.training
    assert not model.frozen.training


def test_submodule_is_measured_by_name(vit, images):
    whole = nn.ModuleDict({"backbone": vit, "head": nn.Linear(24, 4)})
    assert InlineDSE(images=images, encoder="backbone")(whole) == InlineDSE(images=images)(vit)
    with pytest.raises(ValueError, match="no submodule 'encoder'; it has backbone, head"):
        InlineDSE(images=images, encoder="encoder").check(whole)


def test_mistakes_show_in_the_check(vit, images):
    with pytest.raises(ValueError, match=r"\(list\) gave str; expected a tensor \[B, 3, H, W\]"):
        InlineDSE(images=[["a", "b"]]).check(vit)
    with pytest.raises(ValueError, match=r"gave \[3, 32, 32\]"):
        InlineDSE(images=[images[0]]).check(vit)


def test_arguments_that_cannot_work_are_refused(vit, images):
    with pytest.raises(ValueError, match="every is at least 1, got 0"):
        InlineDSE(images=images, every=0)
    with pytest.raises(ValueError, match="ends after one pass"):
        InlineDSE(images=iter([images]))
    with pytest.raises(ValueError, match="there are no images"):
        InlineDSE(images=[])(vit)


def test_diverged_network_is_a_warning_and_no_numbers(vit, images):
    with torch.no_grad():
        vit.norm.weight.fill_(float("nan"))
    with pytest.warns(UserWarning, match="DSE was not measured"):
        assert InlineDSE(images=images).scalars(vit) == {}


def test_epochs_in_between_are_skipped(images):
    inline = InlineDSE(images=images, every=3)
    assert [epoch for epoch in range(10) if inline.due(epoch)] == [3, 6, 9]
