"""Checkpoints of DINOv3, as facebookresearch/dinov3 writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.heads import DINOV3_VITS
from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="dinov3",
    title="DINOv3",
    origin="facebookresearch/dinov3",
    example="ckpt/199",
    needs=(),
    networks=(
        NetworkAt("teacher", "*teacher*backbone.", unless=("gram",)),
        NetworkAt("teacher", "*model_ema*backbone."),
        NetworkAt("teacher", "*", unless=("student", "gram")),
        NetworkAt("gram_teacher", "*gram*"),
        NetworkAt("student", "*student*backbone."),
    ),
    evaluated="the authors evaluate the teacher",
    dialects=("DINOv3", "DINOv3 ConvNeXt"),
    steps_from_field=1,
    heads_by_width=DINOV3_VITS,
    defines=True,
    traps=(
        "Iterations count from zero",
        "Keys have no bias: a third of every qkv.bias is masked",
        "LayerNorms use epsilon 1e-5 as in the released models (layernormbf16); the file does not tell "
        "whether training was set to layernorm, which uses 1e-6",
        "Images are normalised with ImageNet's statistics unless crops.rgb_mean was set, as it was for "
        "satellite images",
        "Rotary positions are computed in float32 as in the released models; training rounds them to "
        "bfloat16",
    ),
)
