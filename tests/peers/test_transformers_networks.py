"""Vision networks of transformers, written by save_pretrained: tokens equal its last hidden state."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peers import assert_same_tokens, disturb, images, refusal, rows

from dse_monitor.checkpoints import load_encoder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def last_hidden_state(model, pixels):
    return model(pixels).last_hidden_state


def unmasked(model, pixels):
    """An MAE's encoder hides three patches of four in random order; here none, in their order."""
    model.config.mask_ratio = 0.0
    places = (pixels.shape[-2] // 8) * (pixels.shape[-1] // 8)
    return model(pixels, noise=torch.arange(places).expand(len(pixels), -1).float()).last_hidden_state


def of_the_vision_tower(model, pixels):
    return model.vision_model(pixels).last_hidden_state


def without_detections(model, pixels):
    """The first of YOLOS's tokens are the class token and the patches, then come those of detections."""
    return model(pixels).last_hidden_state[:, : -model.config.num_detection_tokens]


def last_map(model, pixels):
    return model(pixels).feature_maps[-1]


@dataclass(frozen=True)
class Case:
    """A network of transformers, as small as its class allows."""

    model: str  # class, which `config` is made for
    config: dict[str, Any] = field(default_factory=dict)
    prefix: int = 0  # tokens before the dense ones
    size: tuple[int, int] = (64, 64)  # height and width of the images
    features: Callable = last_hidden_state
    channels_last: bool = False
    variant: str = ""

    @property
    def id(self):
        return self.model + (f"-{self.variant}" if self.variant else "")


def vit(**others):
    """A transformer of two blocks as most configurations spell it."""
    return {
        "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192,
        "image_size": 64, "patch_size": 8, **others,
    }  # fmt: skip


STAGES = {
    "embed_dim": 24,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 4, 4],
    "image_size": 64,
    "patch_size": 2,
}
WIDTHS = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 48]}
TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
MAE = vit(decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
          decoder_intermediate_size=32)  # fmt: skip
SEGFORMER = {"num_encoder_blocks": 4, **WIDTHS, "num_attention_heads": [1, 2, 4, 4]}

CASES = [
    *(
        Case("ViTModel", vit(hidden_act=act), prefix=1, variant=act)
        for act in ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
    ),
    Case("ViTModel", vit(image_size=[32, 96]), prefix=1, size=(32, 96), variant="wide"),
    Case("ViTModel", vit(num_channels=5), prefix=1, variant="5 channels"),
    Case("ViTModel", vit(layer_norm_eps=1e-3), prefix=1, variant="eps"),
    Case("DeiTModel", vit(), prefix=2),
    Case("ViTMSNModel", vit(), prefix=1),
    Case("ViTMAEModel", vit(), prefix=1, features=unmasked),
    Case("ViTMAEForPreTraining", MAE, prefix=1, features=lambda m, x: unmasked(m.vit, x)),
    Case("IJepaModel", vit()),
    Case("Dinov2Model", vit(mlp_ratio=2), prefix=1),
    Case("Dinov2Model", vit(mlp_ratio=2, use_swiglu_ffn=True), prefix=1, variant="swiglu"),
    Case("Dinov2WithRegistersModel", vit(mlp_ratio=2), prefix=5),
    Case("DINOv3ViTModel", vit(num_register_tokens=4), prefix=5),
    Case("DINOv3ConvNextModel", WIDTHS, prefix=1),
    Case("BeitModel", vit(use_relative_position_bias=True), prefix=1),
    Case("BeitModel", vit(use_shared_relative_position_bias=True), prefix=1, variant="shared"),
    Case("BeitModel", vit(use_absolute_position_embeddings=True), prefix=1, variant="absolute"),
    Case("Data2VecVisionModel", vit(use_relative_position_bias=True), prefix=1),
    Case("CLIPVisionModel", vit(), prefix=1),
    Case("CLIPVisionModel", vit(hidden_act="gelu"), prefix=1, variant="gelu"),
    Case("CLIPModel", {"vision_config": vit(), "text_config": TEXT}, prefix=1, features=of_the_vision_tower),
    Case("SiglipVisionModel", vit()),
    Case("SiglipModel", {"vision_config": vit(), "text_config": TEXT}, features=of_the_vision_tower),
    Case("Aimv2VisionModel", vit()),
    Case(
        "YolosModel", vit(image_size=[64, 64], num_detection_tokens=5), prefix=1, features=without_detections
    ),
    Case("DPTModel", vit(backbone_out_indices=[0, 1, 1, 1], neck_hidden_sizes=[16, 16, 16, 16]), prefix=1),
    Case("HieraModel", {**STAGES, "image_size": [64, 64], "patch_size": [7, 7]}),
    Case("SamVisionModel", vit(window_size=4, global_attn_indexes=[1], num_pos_feats=16, output_channels=32)),
    Case("VitDetModel", vit(pretrain_image_size=64, window_size=4, window_block_indices=[0])),
    Case("SwinModel", {**STAGES, "window_size": 4}),
    Case("Swinv2Model", {**STAGES, "window_size": 4}),
    Case("ConvNextModel", WIDTHS),
    Case("ConvNextV2Model", WIDTHS),
    Case("ResNetModel", {**WIDTHS, "embedding_size": 16}),
    Case("ResNetModel", {**WIDTHS, "embedding_size": 16, "layer_type": "basic"}, variant="basic"),
    Case("RegNetModel", {**WIDTHS, "embedding_size": 16, "groups_width": 8}),
    Case(
        "EfficientNetModel",
        {"image_size": 64, "hidden_dim": 320, "width_coefficient": 0.25, "depth_coefficient": 0.25},
    ),
    Case("PvtV2Model", {**SEGFORMER, "mlp_ratios": [2, 2, 2, 2]}),
    Case("PvtModel", {**SEGFORMER, "image_size": 64, "mlp_ratios": [2, 2, 2, 2]}, prefix=1),
    Case("SegformerModel", {**SEGFORMER, "decoder_hidden_size": 16, "mlp_ratios": [2, 2, 2, 2]}),
    Case("FocalNetModel", {"embed_dim": 24, "depths": [1, 1, 1, 1], "image_size": 64}),
    Case("PoolFormerModel", {**WIDTHS, "mlp_ratio": 2.0}),
    Case("MobileViTModel", {"image_size": 64, "hidden_sizes": [48, 64, 80]}),
    Case("MobileNetV2Model", {"image_size": 64, "depth_multiplier": 0.35}),
    Case(
        "LevitModel",
        {
            "image_size": 128,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [16, 16, 16],
        },
        size=(128, 128),
    ),
    Case("SwiftFormerModel", {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [16, 24, 32, 48]}),
    Case("Dinov2Backbone", vit(mlp_ratio=2), features=last_map),
    Case("SwinBackbone", {**STAGES, "window_size": 4}, features=last_map),
]


def built(case):
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, case.model)
    pixels = images(case.size, case.config.get("num_channels", 3))
    return disturb(kind(kind.config_class(**case.config)), run=lambda model: case.features(model, pixels))


def picture_processor(size):
    """The processor a run of its own keeps beside its weights: neither ImageNet's statistics nor its size."""
    from transformers import ViTImageProcessor

    height, width = size
    return ViTImageProcessor(
        size={"height": height, "width": width},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.25, 0.3],
        resample=3,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_save_pretrained_writes_is_read(case, tmp_path, record_property):
    model = built(case)
    model.save_pretrained(tmp_path)
    picture_processor(case.size).save_pretrained(tmp_path)
    pixels = images(case.size, case.config.get("num_channels", 3))
    with torch.no_grad():
        expected = rows(case.features(model, pixels), prefix=case.prefix, channels_last=case.channels_last)
    said = (
        {} if pixels.shape[1] == 3 else {"mean": (0.5,) * pixels.shape[1], "std": (0.25,) * pixels.shape[1]}
    )
    encoder = load_encoder(tmp_path, **said)
    assert_same_tokens(encoder.dense_tokens(pixels), expected, case.id, record_property)
    if not said:
        found = encoder.preprocessing
        assert (found.mean, found.std) == (pytest.approx((0.5, 0.4, 0.3)), pytest.approx((0.2, 0.25, 0.3)))
        assert (found.image_size, found.interpolation, found.crop_mode) == (case.size, "bicubic", "squash")


def video(config):
    return {**vit(), "num_frames": 4, "frames_per_clip": 4, "crop_size": 64, "tubelet_size": 2, **config}


def test_resnets_whose_blocks_keep_relu_whatever_their_configuration_says_are_refused(tmp_path):
    """transformers takes `hidden_act` between blocks and ReLU inside them, which no other ResNet does."""
    built(Case("ResNetModel", {**WIDTHS, "embedding_size": 16, "hidden_act": "silu"})).save_pretrained(
        tmp_path
    )
    refusal(tmp_path, "hidden_act", "silu", "ReLU")


def test_a_network_of_videos_is_given_an_image_as_frames_that_stand_still(tmp_path, record_property):
    from transformers import VJEPA2Config, VJEPA2Model

    config = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2.0}
    small = {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    torch.manual_seed(0)
    settings = VJEPA2Config(**config, **small, crop_size=64, patch_size=16, frames_per_clip=4, tubelet_size=2)
    model = disturb(VJEPA2Model(settings))
    model.save_pretrained(tmp_path)
    pixels = images((64, 64))
    with torch.no_grad():
        expected = model(pixels[:, None].repeat(1, 2, 1, 1, 1), skip_predictor=True).last_hidden_state
    encoder = load_encoder(tmp_path)
    assert_same_tokens(encoder.dense_tokens(pixels), expected, "V-JEPA 2", record_property)
    assert "2 times" in next(fact.value for fact in encoder.facts if fact.name == "frames")


@pytest.mark.parametrize("model", ["VideoMAEModel", "VivitModel", "TimesformerModel"])
def test_networks_of_videos_are_refused_as_such(model, tmp_path):
    """Unless images are read as a clip that stands still, which is what their makers do with images."""
    case = Case(model, video({"tubelet_size": [2, 8, 8]} if model == "VivitModel" else {}))
    built(case).save_pretrained(tmp_path)
    refusal(tmp_path, "video|frames|clips|tubelet")


def test_siglip2_of_any_aspect_ratio_is_read_at_one_or_refused_as_such(tmp_path, record_property):
    model = built(Case("Siglip2VisionModel", vit(num_patches=64)))
    model.save_pretrained(tmp_path)
    try:
        encoder = load_encoder(tmp_path)
    except Exception:
        refusal(tmp_path, "siglip2|naflex|aspect")
        return
    pixels = images((64, 64))
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 64, -1)
    mask, shapes = torch.ones(2, 64, dtype=torch.int64), torch.tensor([[8, 8], [8, 8]])
    with torch.no_grad():
        expected = model(patches, pixel_attention_mask=mask, spatial_shapes=shapes).last_hidden_state
    assert_same_tokens(encoder.dense_tokens(pixels), expected, "SigLIP 2", record_property)
