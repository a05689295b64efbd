"""Which class of transformers encodes images for each `model_type`, and how its last hidden state is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VISION = "vision_config"


@dataclass(frozen=True, kw_only=True)
class Tower:
    """The image encoder of one `model_type`.

    Attributes:
        cls: class of transformers that is built.
        within: part of the configuration that describes it; empty if that is the whole of it.
        prefix: tokens before the dense ones; the first is a class token.
        after: setting that says how many tokens stand behind the dense ones; empty if none do.
        outside: tensors below the encoder's place that take no part in its tokens.
        frames: setting that says of how many frames a token is made, of a network of videos: an image is
            given to it as so many equal frames; empty for networks of images.
        arguments: what the class is built with beside its configuration.
        norm: what happens to the last hidden state at the end, for the documentation.
    """

    cls: str
    within: str = ""
    prefix: int = 0
    after: str = ""
    outside: tuple[str, ...] = ()
    frames: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    norm: str = "final LayerNorm"


NO_POOLER = {"add_pooling_layer": False}
_UNNORMED = "the last stage's map, no norm after it"
_CONVOLUTION = "the last convolution's map, batch norm and activation"
_UNLESS_POOLED = "final LayerNorm, none where use_mean_pooling is on"
_CLIP = Tower(cls="CLIPVisionModel", prefix=1, norm="no norm (the final one is for the class token alone)")

TOWERS: dict[str, Tower] = {
    "aimv2": Tower(cls="Aimv2VisionModel", within=VISION, outside=("head",), norm="final RMSNorm"),
    "aimv2_vision_model": Tower(cls="Aimv2VisionModel", outside=("head",), norm="final RMSNorm"),
    "beit": Tower(cls="BeitModel", prefix=1, arguments=NO_POOLER, outside=("pooler", "embeddings.mask_token"),
                  norm=_UNLESS_POOLED),
    "bit": Tower(cls="BitModel", norm="final GroupNorm and activation where blocks begin with theirs"),
    "clip": Tower(cls=_CLIP.cls, within=VISION, prefix=1, norm=_CLIP.norm),
    "clip_vision_model": _CLIP,
    "cvt": Tower(cls="CvtModel", norm=_UNNORMED),
    "data2vec-vision": Tower(cls="Data2VecVisionModel", prefix=1, arguments=NO_POOLER,
                             outside=("pooler", "embeddings.mask_token"),
                             norm=_UNLESS_POOLED),
    "dpt": Tower(cls="DPTModel", prefix=1, arguments=NO_POOLER, outside=("pooler",)),
    "efficientnet": Tower(cls="EfficientNetModel", norm=_CONVOLUTION),
    "focalnet": Tower(cls="FocalNetModel", arguments=NO_POOLER, outside=("pooler", "embeddings.mask_token")),
    "glpn": Tower(cls="GLPNModel"),
    "hiera": Tower(cls="HieraModel", arguments=NO_POOLER, outside=("pooler",), norm="no norm at the end"),
    "levit": Tower(cls="LevitModel", norm=_UNNORMED),
    "mobilenet_v1": Tower(cls="MobileNetV1Model", norm=_CONVOLUTION),
    "mobilenet_v2": Tower(cls="MobileNetV2Model", norm=_CONVOLUTION),
    "mobilevit": Tower(cls="MobileViTModel", norm=_CONVOLUTION),
    "mobilevitv2": Tower(cls="MobileViTV2Model", norm=_UNNORMED),
    "poolformer": Tower(cls="PoolFormerModel", norm=_UNNORMED),
    "pvt": Tower(cls="PvtModel", prefix=1),
    "pvt_v2": Tower(cls="PvtV2Model"),
    "regnet": Tower(cls="RegNetModel", norm=_UNNORMED),
    "sam": Tower(cls="SamVisionModel", within=VISION, norm="the neck's map, LayerNorm over channels"),
    "sam_vision_model": Tower(cls="SamVisionModel", norm="the neck's map, LayerNorm over channels"),
    "segformer": Tower(cls="SegformerModel"),
    "siglip": Tower(cls="SiglipVisionModel", within=VISION, outside=("head",)),
    "siglip_vision_model": Tower(cls="SiglipVisionModel", outside=("head",)),
    "swiftformer": Tower(cls="SwiftFormerModel", norm=_UNNORMED),
    "swinv2": Tower(cls="Swinv2Model", arguments=NO_POOLER, outside=("pooler", "embeddings.mask_token")),
    "vitdet": Tower(cls="VitDetModel", norm="no norm"),
    "vjepa2": Tower(cls="VJEPA2Model", frames="tubelet_size", outside=("predictor",),
                    norm="final LayerNorm; the image is given as the equal frames of one tubelet"),
    "yolos": Tower(cls="YolosModel", prefix=1, after="num_detection_tokens", arguments=NO_POOLER,
                   outside=("pooler",)),
}  # fmt: skip

# Networks whose input is no single image of one shape: said, and not read.
OTHER_INPUTS = {
    "siglip2": "patches of images of any aspect ratio (NaFlex)",
    "siglip2_vision_model": "patches of images of any aspect ratio (NaFlex)",
    "timesformer": "videos of several frames",
    "videomae": "videos: clips of several frames",
    "vivit": "videos: clips of several frames",
    "x_clip": "videos of several frames",
    "xclip": "videos of several frames",
}
