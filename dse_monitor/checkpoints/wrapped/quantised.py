"""Quantised weights: known by the names of the libraries that write them, and refused with their names.

What their modules compute depends on kernels and settings that a state dict does not hold. The library that
wrote the file can turn it back into plain weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dse_monitor.checkpoints.wrapped.folded import Folded, Refusal, View, refused

QUANTISED = "quantised"
_DEQUANTISE = "load it with the library that wrote it, dequantise, and save the plain state dict"
# What ends a name, the weight it belongs to (in the place of \1), and whose it is.
_FORMS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), target, words)
    for pattern, target, words in (
        (
            r"(.+)\.weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)",
            r"\1.weight",
            "bitsandbytes (4 bits)",
        ),
        (r"(.+)\.(?:SCB|weight_format)", r"\1.weight", "bitsandbytes (LLM.int8)"),
        (r"(.+)\.(?:qweight|qzeros|g_idx)", r"\1.weight", "GPTQ or AWQ"),
        (
            r"(.+)\.(?:weight_packed|weight_zero_point|weight_scale|weight_scale_inv)",
            r"\1.weight",
            "compressed-tensors or an 8-bit float format (its scale is kept apart)",
        ),
        (r"(.+)\._?(?:weight)?_?(?:qdata|weight_scale_and_zero)", r"\1.weight", "torchao"),
        (r"(.+)\.weight:\w+", r"\1.weight", "torchao"),
        (r"(.+)\.(?:_packed_params\..+|zero_point)", r"\1.weight", "torch.ao.quantization"),
        (r"(.+)\.weight_fake_quant\..+", r"\1.weight", "torch.ao.quantization (quantisation-aware training)"),
    )
)
_WORDS = (
    ".absmax", "quant_", ".SCB", ".weight_format", ".qweight", ".qzeros", ".g_idx", ".weight_packed",
    ".weight_scale", ".weight_zero_point", "qdata", ".weight:", "._packed_params.", ".zero_point",
    ".weight_fake_quant.",
)  # fmt: skip


def is_marked(names: Iterable[str]) -> bool:
    """Whether any name is one that these libraries use."""
    return any(word in name for name in names for word in _WORDS)


def folded(view: View) -> View:
    """The state dict with every quantised weight refused under its plain name; other tensors stay."""
    if not is_marked(view):
        return view
    out = dict(view)
    groups: dict[str, tuple[str, list[str]]] = {}
    for name in view:
        for pattern, target, words in _FORMS:
            if match := pattern.fullmatch(name):
                groups.setdefault(match.expand(target), (words, []))[1].append(name)
                break
    for target, (words, names) in groups.items():
        parts = [out.pop(name) for name in names]
        if "qweight" in "".join(names):
            out.pop(f"{target.removesuffix('.weight')}.scales", None)
        stored = view.get(target)
        out[target] = refused(
            [*parts, *([stored] if stored else [])],
            stored.shape if stored else (),
            QUANTISED,
            f"{target} is quantised by {words}: {names[0]} is there",
            _DEQUANTISE,
        )
    return out


def unread(name: str, reason: str) -> Folded:
    """A value that stands for a tensor and was left as it is, with the reader's reason."""
    reason = reason.removeprefix("not built: ")
    advice = _DEQUANTISE
    if "torch.distributed" in reason:
        advice = (
            "give a consolidated checkpoint (get_model_state_dict with full_state_dict=True) or the folder "
            "of torch.distributed.checkpoint"
        )
    elif "torchao" not in reason and "quantised" not in reason:
        advice = "save the plain state dict, its tensors as torch.Tensor"
    return Folded((), (), how=QUANTISED, refusal=Refusal(f"{name} could not be read: {reason}", advice))
