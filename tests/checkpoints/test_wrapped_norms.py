"""Weights kept as something else are what torch's own modules compute of them, in tensors and tokens."""

import copy
import warnings

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from dse_monitor.checkpoints.families.statedicts import state_dicts
from dse_monitor.checkpoints.recognition import architecture
from dse_monitor.checkpoints.recognition.dialects import WrappedWeights

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(**options):
    torch.manual_seed(0)
    sizes = dict(img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=0)
    vit = VisionTransformer(**sizes, **options).eval()
    for parameter in vit.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return vit


def linears(vit):
    return [module for module in vit.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def weight_norm_of_old(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.nn.utils.weight_norm is deprecated
        nn.utils.weight_norm(module)


def spectral_norm_of_old(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.spectral_norm(module)


FORMS = {
    "old weight norm": (weight_norm_of_old, "weight norm"),
    "weight norm": (parametrizations.weight_norm, "weight norm"),
    "weight norm along columns": (lambda module: parametrizations.weight_norm(module, dim=1), "weight norm"),
    "weight norm of the whole": (
        lambda module: parametrizations.weight_norm(module, dim=None),
        "weight norm",
    ),
    "old spectral norm": (spectral_norm_of_old, "spectral norm"),
    "spectral norm": (parametrizations.spectral_norm, "spectral norm"),
    "pruned": (lambda module: prune.random_unstructured(module, "weight", 0.4), "pruning mask"),
    "pruned by rows": (lambda module: prune.ln_structured(module, "weight", 0.25, 2, 0), "pruning mask"),
}


def wrapped(form):
    """A network in evaluation mode after some training steps, each of its weights in this form."""
    vit = network().train()
    for module in linears(vit):
        FORMS[form][0](module)
    optimiser = torch.optim.SGD(vit.parameters(), 1e-2)
    for _ in range(3):
        vit(IMAGES).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return vit.eval()


def read(state, tree=None):
    """The one encoder in a file of this state dict, and its pieces made of the stored tensors."""
    tree = state if tree is None else tree
    (found,) = architecture.encoders(state_dicts(tree))
    pieces = found.pieces()
    stored = {name: tensor.detach().float() for name, tensor in state.items()}
    return found, {
        name: piece.make([stored[found.prefix + source] for source in piece.sources])
        for name, piece in pieces.items()
    }


class Reference:
    """Stands for a tensor in a tree as the reader's description does."""

    def __init__(self, tensor):
        self.shape, self.dtype, self.nbytes = tuple(tensor.shape), str(tensor.dtype), tensor.nbytes


def described(state):
    return {name: Reference(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_what_the_module_computes(form):
    vit = wrapped(form)
    names = {f"{name}.weight": module for name, module in vit.named_modules() if module in linears(vit)}
    state = vit.state_dict()
    found, tensors = read(state, described(state))
    assert found.dialect.name == "timm ViT"
    assert found.computed() == (f"{FORMS[form][1]} ({len(names)})",)
    with torch.no_grad():
        for name, module in names.items():
            vit(IMAGES)  # a forward pass in evaluation mode refreshes what the older functions keep
            assert torch.equal(tensors[name], module.weight), name


@pytest.mark.parametrize("form", FORMS)
def test_file_is_read_with_the_tokens_of_the_module(form, saved):
    from dse_monitor.checkpoints import load_encoder

    vit = wrapped(form)
    encoder = load_encoder(saved({"model": vit.state_dict()}), num_heads=3)
    with torch.no_grad():
        wanted = vit.forward_features(IMAGES)[:, 1:]
    assert torch.allclose(encoder.dense_tokens(IMAGES), wanted, atol=1e-5)


def test_prefix_and_wrappers_survive_the_computation():
    state = {
        f"module.backbone.{name}": tensor for name, tensor in wrapped("weight norm").state_dict().items()
    }
    found, tensors = read(
        {name.removeprefix("module."): tensor for name, tensor in state.items()},
        {"student": described(state)},
    )
    assert (found.location, found.spelled) == ("student/backbone.", "student/module.backbone.")
    assert found.shapes()["patch_embed.proj.weight"] == (192, 3, 8, 8)
    assert "patch_embed.proj.parametrizations.weight.original0" in found.references()
    assert tensors["blocks.1.mlp.fc2.weight"].shape == (192, 768)


def test_plain_state_dict_is_left_alone():
    (state,) = state_dicts(described(network().state_dict()))
    assert state.weights is state.tensors
    assert not state.folding.folded
    assert not state.folding.consumed


def orthogonal(module):
    parametrizations.orthogonal(module)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Shifted(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight):
        return weight + self.shift


@pytest.mark.parametrize(
    ("register", "said"),
    [
        (orthogonal, r"blocks\.0\.attn\.proj\.weight is computed by .*orthogonal"),
        (
            lambda module: parametrize.register_parametrization(module, "weight", Doubled()),
            "parametrization without tensors of its own",
        ),
        (
            lambda module: parametrize.register_parametrization(module, "weight", Shifted(module.weight)),
            r"not known here \(it holds 0\.shift\)",
        ),
    ],
)
def test_unknown_parametrization_is_refused_by_name(register, said):
    vit = network()
    register(vit.blocks[0].attn.proj)
    (found,) = architecture.encoders(state_dicts(described(vit.state_dict())))
    with pytest.raises(WrappedWeights, match=said) as caught:
        found.pieces()
    assert "remove_parametrizations" in caught.value.advice
    assert "remove_parametrizations" not in caught.value.problem


def test_pruning_and_spectral_norm_at_once_are_refused():
    vit = network()
    spectral_norm_of_old(vit.blocks[1].mlp.fc1)
    state = described(vit.state_dict())
    state["blocks.1.mlp.fc1.weight_mask"] = state["blocks.1.mlp.fc1.weight_orig"]
    (found,) = architecture.encoders(state_dicts(state))
    with pytest.raises(WrappedWeights, match=r"blocks\.1\.mlp\.fc1\.weight is kept as .*weight_mask"):
        found.pieces()


def test_head_in_an_unknown_form_is_no_obstacle():
    vit = network()
    vit.head = nn.Linear(192, 10)
    orthogonal(vit.head)
    vit.decoder_embed = nn.Linear(192, 10)
    orthogonal(vit.decoder_embed)
    (found,) = architecture.encoders(state_dicts(described(vit.state_dict())))
    with pytest.raises(WrappedWeights, match=r"decoder_embed\.weight"):
        found.pieces()
    pieces = found.pieces(drop=("decoder_",))
    assert not {"head.weight", "decoder_embed.weight"} & pieces.keys()
    assert "blocks.1.mlp.fc2.weight" in pieces


@pytest.mark.parametrize("length", [(192, 1, 1), (1, 1, 1, 1), (8,), (192, 3, 1, 1)])
def test_length_that_fits_no_direction_is_refused(length):
    state = described(copy.deepcopy(network().state_dict()))
    state["patch_embed.proj.weight_v"] = state.pop("patch_embed.proj.weight")
    state["patch_embed.proj.weight_g"] = Reference(torch.zeros(length))
    (found,) = architecture.encoders(state_dicts(state))
    with pytest.raises(WrappedWeights, match="looks like weight norm"):
        found.pieces()


def test_names_that_happen_to_end_alike_stay():
    state = described(network().state_dict())
    other = Reference(torch.zeros(3))
    state |= {
        "extra_g": other,
        "extra_v": other,
        "lone_orig": other,
        "a.weight_u": other,
        "a.weight_g": other,
    }
    (found,) = state_dicts(state)
    assert found.weights.keys() == state.keys()
