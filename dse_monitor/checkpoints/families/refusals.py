"""What no network here has, refused before anything is asked: impossible shapes, other networks' parts.

Names are those of the network that is built. Shapes come from anybody's file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dse_monitor.checkpoints.families.network import NotThisNetwork
from dse_monitor.checkpoints.families.statedicts import Shape

MAX_SIDE = 1 << 22  # size of one axis; ours: thirty times the widest layer of any published encoder
MAX_NUMBER = 4  # digits of a block's number
_SINGLE = re.compile(
    r"(?:.*[._])?(?:weight|bias|gamma|gamma_\d|token|embed|periods|table|running_mean|running_var)"
)
_MATRIX = re.compile(r"(?:.*\.)?(?:qkv|fc1|fc2|fc1_g|fc1_x|reduction)\.weight")
_TOKENS = re.compile(r"(?:cls|reg)_token")
_COUNTED = re.compile(rf"(?:^|\.)\d{{{MAX_NUMBER + 1},}}(?:\.|$)")

# What a block of a plain vision transformer consists of, in timm's names.
_BLOCK = re.compile(
    r"blocks\.\d+\.(?:norm[12]\.(?:weight|bias)|attn\.(?:qkv|proj|q_norm|k_norm|norm)\.(?:weight|bias)"
    r"|ls[12]\.gamma|mlp\.(?:fc1|fc2|fc1_g|fc1_x|norm)\.(?:weight|bias))"
)
# Parts of other networks' blocks, and what they are.
_OTHERS = (
    ("rel_pos", "relative positions, as in SAM, ViTDet and MViT"),
    ("relative_position", "relative position biases, as in BEiT"),
    ("lora_", "LoRA; merge it into the weights before saving"),
    ("logit_scale", "cosine attention, as in Swin version 2"),
    ("adapter", "adapters; merge them into the weights before saving"),
    ("rope", "rotary positions"),
)


def plausible(shapes: Mapping[str, Shape]) -> None:
    """Refuse shapes that no network has, so that families may index and divide by them.

    Raises:
        NotThisNetwork: an axis is empty or huge, a weight is a single number, a matrix has one axis, or
            numbers in names run to tens of thousands.
    """
    for name, shape in shapes.items():
        if _COUNTED.search(name):
            raise NotThisNetwork(f"{name[:80]} counts further than any network has layers")
        if any(not 0 < size <= MAX_SIDE for size in shape):
            raise NotThisNetwork(f"{name} is {list(shape)}, with an axis that is empty or beyond any layer's")
        least = 2 if _MATRIX.fullmatch(name) else 3 if _TOKENS.fullmatch(name) else 1
        if len(shape) < least and (least > 1 or _SINGLE.fullmatch(name)):
            raise NotThisNetwork(f"{name} is {list(shape) or 'a single number'}; {least} axes were expected")


def plain_blocks(shapes: Mapping[str, Shape], width: int) -> None:
    """Refuse blocks that are not those of a plain vision transformer of this width.

    Raises:
        NotThisNetwork: they hold other tensors, which it lists, or are of several widths.
    """
    others = [name for name in shapes if name.startswith("blocks.") and not _BLOCK.fullmatch(name)]
    known = next((words for part, words in _OTHERS if any(part in name for name in others)), "")
    widths = [shape[0] for name, shape in shapes.items() if re.fullmatch(r"blocks\.\d+\.norm1\.weight", name)]
    if any(found != width for found in widths):
        found = ", ".join(map(str, dict.fromkeys([width, *widths])))
        raise NotThisNetwork(
            f"its blocks are {found} wide: stages of growing width, as in Hiera and MViT, not one width "
            "throughout"
        )
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        words = f" ({known})" if known else ""
        raise NotThisNetwork(f"its blocks hold {shown}, which no plain vision transformer has{words}")
