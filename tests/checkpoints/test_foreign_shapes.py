"""Names of every dialect with any shapes: a network or a refusal in words, never another exception."""

import pytest
import torch
import torchvision
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.resnet import Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from dse_monitor.checkpoints.families.network import Hints, NotThisNetwork
from dse_monitor.checkpoints.families.statedicts import state_dicts
from dse_monitor.checkpoints.recognition import architecture
from dse_monitor.checkpoints.recognition.dialects import DIALECTS, find
from dse_monitor.errors import DSEError

VIT = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=4, num_classes=3)
HF_VIT = dict(
    image_size=32,
    patch_size=8,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
)
SWIN = dict(
    img_size=64, patch_size=4, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=2
)
STAGES = dict(depths=[1] * 4, hidden_sizes=[8, 16, 24, 32])


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def respelled(shapes, *pairs):
    """The same shapes under names in which each first text is replaced by its second."""
    out = {}
    for name, shape in shapes.items():
        for old, new in pairs:
            name = name.replace(old, new)
        out[name] = shape
    return out


def hugging_face(kind, **options):
    with torch.device("meta"):
        return shapes_of(
            getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**options))
        )


def samples():
    """Names and shapes of a small network in every dialect, as its library writes it; some spelt by hand."""
    with torch.device("meta"):
        vit = shapes_of(VisionTransformer(**VIT, reg_tokens=2, init_values=1.0))
        resnet = shapes_of(ResNet(Bottleneck, (1, 1, 1, 1), channels=(8, 8, 8, 8)))
        swin = shapes_of(SwinTransformer(**SWIN))
        convnext = shapes_of(ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), use_grn=True))
        eva = shapes_of(
            Eva(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, init_values=1.0,
                num_reg_tokens=2, use_abs_pos_emb=False, use_rot_pos_emb=True)
        )  # fmt: skip
        old_swin = {
            name.replace("layers.1.downsample", "layers.0.downsample"): shape for name, shape in swin.items()
        } | {f"layers.0.downsample.{part}": (32,) for part in ("norm.weight", "norm.bias")}
        vision = {
            "ViT": torchvision.models.VisionTransformer(32, 8, 2, 4, 24, 96),
            "Swin": torchvision.models.SwinTransformer([4, 4], 8, [1] * 4, [1, 2, 4, 8], [2, 2]),
            "ConvNeXt": torchvision.models.ConvNeXt(
                [
                    CNBlockConfig(8, 16, 1),
                    CNBlockConfig(16, 24, 1),
                    CNBlockConfig(24, 32, 1),
                    CNBlockConfig(32, None, 1),
                ]
            ),
        }
    gates = {
        "blocks.0.mlp.w12.weight": (64, 24),
        "blocks.0.mlp.w3.weight": (24, 32),
        "blocks.0.attn.q_bias": (24,),
    }
    tables = {"rope_embed.periods": (3,), "blocks.0.attn.qkv.bias_mask": (72,), "storage_tokens": (1, 2, 24)}
    original = respelled(
        convnext, ("stem.", "downsample_layers.0."), (".blocks.", "."), ("conv_dw", "dwconv"),
        ("mlp.fc", "pwconv"), ("mlp.grn.weight", "grn.gamma"), ("mlp.grn.bias", "grn.beta"),
    )  # fmt: skip
    mm_swin = respelled(
        swin, ("proj.", "projection."), ("layers.", "stages."), ("attn.", "attn.w_msa."),
        ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"),
    )  # fmt: skip
    yield from (vit, vit | gates, resnet, swin, old_swin, convnext, original, eva, vit | tables, mm_swin)
    yield original | {"norms.3.weight": (32,), "norms.3.bias": (32,)}
    yield {**vit, "patch_embed.proj.12.weight": (24, 3, 1, 1), "patch_embed.proj.0.weight": (3, 3, 3, 3)}
    yield respelled(vit, ("blocks.0.", "blocks.0.0."), ("blocks.1.", "blocks.1.1."))
    yield respelled(vit, ("patch_embed.proj", "patch_embed.projection"), ("blocks", "layers"), ("norm", "ln"))
    yield respelled(resnet, ("conv1.", "conv1.0.")) | {"layer1.0.conv1.weight": (8, 8, 1, 1)}
    yield respelled(resnet, ("downsample", "shortcut")) | {"conv1.weight": (64, 3, 3, 3)}
    yield {
        ".".join(
            [{"conv1": "0", "bn1": "1"}.get(first, str(3 + int(first[5:])) if first[5:] else first), *rest]
        ): shape
        for name, shape in resnet.items()
        for first, *rest in [name.split(".")]
    }
    yield from map(shapes_of, vision.values())
    yield {
        "conv1.weight": (24, 3, 8, 8), "class_embedding": (24,), "positional_embedding": (17, 24),
        "proj": (24, 16),
    } | respelled(
        {name: shape for name, shape in vit.items() if name.startswith(("blocks", "norm."))},
        ("blocks.", "transformer.resblocks."), (".norm", ".ln_"), ("norm.", "ln_post."), (".ls", ".ls_"),
        ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("fc1", "c_fc"), ("fc2", "c_proj"),
    )  # fmt: skip
    yield hugging_face("ViT", **HF_VIT)
    yield respelled(
        hugging_face("ViT", **HF_VIT),
        ("layers.", "encoder.layer."), ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"), ("attention.v_proj", "attention.attention.value"),
    )  # fmt: skip
    yield hugging_face("Dinov2", **HF_VIT | {"use_swiglu_ffn": True})
    for kind in ("DINOv3ViT",):
        yield hugging_face(kind, **HF_VIT)
        yield respelled(hugging_face(kind, **HF_VIT), ("model.layer.", "layer."))
    yield hugging_face(
        "Swin", image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 2, 4, 8], window_size=2
    )
    yield hugging_face("ConvNext", **STAGES)
    yield hugging_face("ResNet", embedding_size=8, depths=[1] * 4, hidden_sizes=[8, 16, 24, 32])
    yield hugging_face("DINOv3ConvNext", **STAGES)
    yield respelled(hugging_face("DINOv3ConvNext", **STAGES), ("model.stages", "stages"))


class Reference:
    """Stands for a tensor in a tree as the reader's description does."""

    dtype, nbytes = "float32", 0

    def __init__(self, shape):
        self.shape = shape


@pytest.fixture(scope="module")
def by_dialect():
    """A sample of every dialect, by its name."""
    found = {}
    for shapes in samples():
        tree = {name: Reference(shape) for name, shape in shapes.items()}
        for one in find(state_dicts(tree)):
            found.setdefault(one.dialect.name, shapes)
    return found


SIZES = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 16, 24, 25, 72, 192, 768, 1000, 4096, 1 << 20, 1 << 33])
SHAPES = st.lists(SIZES, max_size=5).map(tuple)
HINTS = st.builds(
    Hints,
    num_heads=st.none() | st.integers(-1, 30),
    image_size=st.none() | st.sampled_from([(1, 1), (7, 7), (224, 224), (32, 128)]),
    details=st.sampled_from([{}, {"positions": "sinusoid"}, {"hidden_act": "relu"}, {"pad_first": True}]),
)


@st.composite
def disturbed(draw, shapes):
    """A network's tensors, some of another shape, some missing, some under the name of another."""
    names = sorted(shapes)
    out = dict(shapes)
    for name in draw(st.lists(st.sampled_from(names), max_size=4)):
        out[name] = draw(SHAPES | st.just(shapes[name][::-1]) | st.just(shapes[name][:-1]))
    for name in draw(st.lists(st.sampled_from(names), max_size=3)):
        out.pop(name, None)
    for name in draw(st.lists(st.sampled_from(names), max_size=2)):
        number = draw(st.sampled_from(["0", "3", "7", "11", "12345", "9" * 12]))
        out[".".join(number if part.isdigit() else part for part in name.split("."))] = draw(SHAPES)
    return out


def taken_or_refused(shapes, hints):
    tree = {name: Reference(shape) for name, shape in shapes.items()}
    for found in find(state_dicts(tree)):
        said = refusal(found, hints)
        assert said is None or 10 < len(said) < 600


def refusal(found, hints):
    """The words of a refusal; None where there is a network."""
    try:
        pieces = found.pieces()
        assert all(isinstance(size, int) for piece in pieces.values() for size in piece.shape)
        shapes = {name: piece.shape for name, piece in pieces.items()}
        architecture.recognise(found.dialect.family, shapes, hints)
    except (NotThisNetwork, DSEError) as error:
        return str(error)
    return None


def test_every_dialect_has_a_sample(by_dialect):
    assert by_dialect.keys() == {dialect.name for dialect in DIALECTS}


@pytest.mark.parametrize("name", [dialect.name for dialect in DIALECTS])
def test_undisturbed_tensors_are_a_network_or_refused(by_dialect, name):
    taken_or_refused(by_dialect[name], Hints(num_heads=2))


@pytest.mark.parametrize("examples", [40, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [dialect.name for dialect in DIALECTS])
def test_any_shapes_are_a_network_or_refused(by_dialect, name, examples):
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(shapes=disturbed(by_dialect[name]), hints=HINTS)
    def check(shapes, hints):
        taken_or_refused(shapes, hints)

    check()


@pytest.mark.parametrize("name", [dialect.name for dialect in DIALECTS])
def test_single_numbers_everywhere_are_refused(by_dialect, name):
    for shape in ((), (0,), (0, 0), (1,), (1, 1), (1, 1, 1, 1), (5, 4, 3, 2, 1)):
        taken_or_refused(dict.fromkeys(by_dialect[name], shape), Hints())


def test_bottleneck_that_gives_out_less_than_it_holds_is_refused(by_dialect):
    shapes = by_dialect["ResNet"] | {"layer3.0.conv3.weight": (3, 8, 1, 1)}
    taken_or_refused(shapes, Hints())
