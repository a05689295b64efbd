"""One network of every family of timm, written by timm's saver and read back: tokens equal timm's own."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peers import assert_same_tokens, images, timm_network, timm_tokens, train_py_args, write_as_timm

from dse_monitor.checkpoints import load_encoder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Case:
    """A network of timm, small enough for a second on one core."""

    model: str
    kwargs: dict[str, Any] = field(default_factory=dict)  # --model-kwargs of train.py
    args: dict[str, Any] = field(default_factory=dict)  # its other arguments
    prefix: int | None = None  # tokens that timm does not count in num_prefix_tokens

    @property
    def id(self):
        given = {**self.kwargs, **self.args}
        return "-".join([self.model, *(f"{name}={value}" for name, value in given.items())]).replace(" ", "")

    @property
    def options(self):
        """What a user says of a bare state dict, beside its name."""
        said = {name: self.args[name] for name in ("mean", "std", "interpolation") if name in self.args}
        built = {**self.kwargs, **{name: self.args[name] for name in ("bn_eps",) if name in self.args}}
        if "input_size" in self.args:
            said["image_size"] = tuple(self.args["input_size"][1:])
        if "img_size" in self.args:
            said["image_size"] = (self.args["img_size"], self.args["img_size"])
        return {"arch": self.model, "arch_option": tuple(f"{n}={v!r}" for n, v in built.items()), **said}


TWO = {"depth": 2}
SMALL = {"depth": 2, "embed_dim": 192, "num_heads": 3}
STAGES = {"depths": (1, 1, 2, 1)}
FOUR = {"mean": [0.4, 0.5, 0.6, 0.7], "std": [0.1, 0.2, 0.3, 0.4]}  # four bands, each its own

CONVOLUTIONAL = [
    Case("efficientnet_lite0"),
    Case("tf_efficientnetv2_b0"),
    Case("mobilenetv3_small_050"),
    Case("mobilenetv4_conv_small_035"),
    Case("mobilenetv4_hybrid_medium"),
    Case("regnetx_002"),
    Case("regnety_002"),
    Case("fastvit_t8"),
    Case("repvit_m0_9"),
    Case("poolformer_s12"),
    Case("caformer_s18"),
    Case("mobilevit_xxs"),
    Case("edgenext_xx_small"),
    Case("inception_next_atto"),
    Case("focalnet_tiny_srf"),
    Case("nextvit_small"),
    Case("starnet_s050"),
    Case("efficientvit_b0"),
    Case("efficientvit_m0"),
    Case("mambaout_femto"),
    Case("ghostnet_050"),
    Case("hrnet_w18_small"),
    Case("convnext_atto"),
    Case("convnextv2_atto"),
    Case("convnext_atto", {"kernel_sizes": 5}),
    Case("resnet18"),
    Case("efficientnet_lite0", args={"bn_eps": 1e-2}),
    Case("resnet18", {"act_layer": "silu"}),
    Case("resnetblur18"),
    Case("resnetaa34d"),
    Case("seresnet18"),
    Case("resnet26", {"output_stride": 8}),
    Case("resnet26", {"output_stride": 16}),
    Case("resnetv2_18"),
    Case("resnetv2_50"),
    Case("resnet18", args={"in_chans": 1, "img_size": 224, "mean": [0.5], "std": [0.25]}),
    Case("resnet18", args={"input_size": [13, 224, 224], "mean": [0.5], "std": [0.25]}),
    Case("convnext_atto", args={"input_size": [4, 224, 224], **FOUR}),
]

WINDOWS_AND_STAGES = [
    Case("pvt_v2_b0"),
    Case("davit_tiny", STAGES),
    Case("maxvit_pico_rw_256"),
    Case("maxxvit_rmlp_nano_rw_256"),
    Case("coatnet_pico_rw_224"),
    Case("levit_128s"),
    Case("tiny_vit_5m_224"),
    Case("twins_svt_small", STAGES),
    Case("gcvit_xxtiny"),
    Case("mvitv2_tiny"),
    Case("jx_nest_tiny"),
    Case("coat_lite_tiny", prefix=1),
    Case("efficientformerv2_s0"),
    Case("visformer_tiny"),
    Case("vitamin_small_224"),
    Case("hieradet_small"),
    Case("hiera_tiny_224", {"stages": (1, 1, 2, 1)}),
    Case("swin_tiny_patch4_window7_224", STAGES),
    Case("swin_tiny_patch4_window7_224", {**STAGES, "num_heads": (6, 6, 12, 24)}),
    Case(
        "swin_tiny_patch4_window7_224",
        {**STAGES, "img_size": (96, 160), "window_size": 4},
        {"input_size": [3, 96, 160]},
    ),
    Case("swinv2_tiny_window8_256", STAGES),
    Case("swinv2_cr_tiny_ns_224", STAGES),
]

PLAIN = [
    Case("vit_tiny_patch16_224", TWO),
    Case("vit_small_patch16_224", {**TWO, "num_heads": 12}),
    Case("vit_tiny_patch16_224", {**TWO, "act_layer": "relu"}),
    Case("vit_tiny_patch16_224", {**TWO, "img_size": (96, 160)}, {"input_size": [3, 96, 160]}),
    Case(
        "vit_tiny_patch16_224", {**TWO, "img_size": (32, 128), "patch_size": 4}, {"input_size": [3, 32, 128]}
    ),
    Case("vit_tiny_patch16_224", TWO, {"in_chans": 1, "img_size": 224, "mean": [0.5], "std": [0.25]}),
    Case("vit_tiny_patch16_224", TWO, {"input_size": [13, 224, 224], "mean": [0.5], "std": [0.25]}),
    Case("vit_tiny_patch16_224", {**TWO, "dynamic_img_size": True}, {"img_size": 160}),
    Case("vit_base_patch16_clip_quickgelu_224", SMALL),
    Case("vit_base_patch32_clip_224", SMALL),
    Case("vit_base_patch16_siglip_224", SMALL),
    Case("vit_medium_patch16_reg4_gap_256", TWO),
    Case("vit_small_patch14_reg4_dinov2", {**TWO, "img_size": 224}, {"img_size": 224}),
    Case("vit_small_patch16_dinov3", TWO),
    Case("vit_small_patch16_rope_224", TWO),
    Case("vit_small_patch16_rope_ape_224", TWO),
    Case("vit_small_patch16_rope_mixed_224", TWO),
    Case("vit_small_patch16_rope_mixed_ape_224", TWO),
    Case("vit_pe_core_tiny_patch16_384", TWO),
    Case("vit_pe_spatial_tiny_patch16_512", TWO),
    Case("vit_relpos_small_patch16_224", TWO),
    Case(
        "samvit_base_patch16_224", {"depth": 3, "embed_dim": 192, "num_heads": 3, "global_attn_indexes": (2,)}
    ),
    Case("aimv2_large_patch14_224", SMALL),
    Case("eva02_tiny_patch14_224", TWO),
    Case("eva_giant_patch14_224", {"depth": 2, "embed_dim": 176, "num_heads": 2}),
    Case("beit_base_patch16_224", SMALL),
    Case("beitv2_base_patch16_224", SMALL),
    Case("beit3_base_patch16_224", SMALL),
    Case("deit3_small_patch16_224", TWO),
    Case("deit_tiny_distilled_patch16_224", TWO),
    Case("cait_xxs24_224", TWO),
    Case("convit_tiny", {**TWO, "local_up_to_layer": 1}),
    Case("xcit_nano_12_p16_224", TWO),
    Case("volo_d1_224", prefix=1),
    Case("tnt_s_patch16_224", TWO),
    Case("mixer_s32_224"),
    Case("resmlp_12_224"),
    Case("naflexvit_base_patch16_gap", SMALL),
]

CASES = [*CONVOLUTIONAL, *WINDOWS_AND_STAGES, *PLAIN]


@dataclass(frozen=True)
class Made:
    """What timm made of a case.

    Attributes:
        path: its saver's file.
        bare: the same weights with nothing beside them.
        pixels: images of the network's size.
        expected: timm's own tokens of them.
        data: how timm itself prepares images for it.
    """

    case: Case
    path: Any
    bare: Any
    pixels: torch.Tensor
    expected: torch.Tensor
    data: dict[str, Any]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.id)
def made(request, tmp_path_factory):
    from timm.data import resolve_data_config

    case, folder = request.param, tmp_path_factory.mktemp("timm")
    args = train_py_args(case.model, case.kwargs, **case.args)
    model = timm_network(args)
    data = resolve_data_config(vars(args), model=model)
    channels, *size = data["input_size"]
    pixels = images(tuple(size), channels)
    torch.save(model.state_dict(), folder / "weights.pth")
    path = write_as_timm(model, args, folder)
    yield Made(case, path, folder / "weights.pth", pixels, timm_tokens(model, pixels, case.prefix), data)
    for file in folder.iterdir():  # some are of a hundred megabytes
        file.unlink()


def test_the_file_of_timms_saver_is_read_without_options(made, record_property):
    encoder = load_encoder(made.path)
    assert_same_tokens(encoder.dense_tokens(made.pixels), made.expected, made.case.id, record_property)
    assert encoder.epoch == 5


def test_bare_weights_are_read_by_their_architectures_name(made, record_property):
    encoder = load_encoder(made.bare, **made.case.options)
    assert_same_tokens(encoder.dense_tokens(made.pixels), made.expected, made.case.id, record_property)


def test_images_are_prepared_as_timm_prepares_them(made):
    channels, height, width = made.data["input_size"]
    found = load_encoder(made.path).preprocessing
    assert (found.channels, found.image_size) == (channels, (height, width))
    assert found.interpolation == made.data["interpolation"]
    assert found.mean == pytest.approx(made.data["mean"])
    assert found.std == pytest.approx(made.data["std"])
