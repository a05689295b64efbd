"""peft's LoRA: ``x.base_layer.weight`` with ``x.lora_A`` and ``x.lora_B`` beside it becomes ``x.weight``.

Shapes: a linear weight is [O, I], A [r, I], B [O, r]; a convolution's is [O, I, k, k], A [r, I, k, k],
B [O, r, 1, 1]. The weight is ``W + s B A`` with ``s = lora_alpha / r`` (``/ sqrt(r)`` when rank-stabilised).
A state dict does not hold lora_alpha; peft writes it into adapter_config.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.wrapped.folded import Folded, Refusal, View, computed, listed, refused

if TYPE_CHECKING:
    from torch import Tensor

LORA, SAVED = "LoRA", "retrained by peft"
CONFIG = "adapter_config.json"
MERGE = "merge_and_unload() the model before saving it, or save with the adapter_config.json beside the file"
MERGE_ONLY = "merge_and_unload() the model with peft before saving it"
# Fields of adapter_config.json that change nothing of what a trained LoRA computes.
_INERT = frozenset(
    (
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
        "ensure_weight_tying",
        "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout",
        "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
        "qalora_group_size",
        "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
    )
)  # fmt: skip
_MAX_NUMBER = 1e9  # of lora_alpha and r; ours, far beyond any use
MAX_PATTERNS = 256  # module names with a rank of their own; ours
_PLAIN_PATTERN = re.compile(r"\^?[\w.\\-]+\$?")  # no repetition: a regular expression that cannot run wild
_MEMBER = re.compile(r"(lora_A|lora_B)\.([^.]+)\.(weight|bias)")
_SAVED = re.compile(r"(.+)\.(?:modules_to_save\.([^.]+)|(original_module))\.(.+)")


def is_marked(names: Iterable[str]) -> bool:
    """Whether any name is one that peft uses."""
    return any(".base_layer." in name or ".lora_" in name or ".modules_to_save." in name for name in names)


@dataclass(frozen=True)
class Scaling:
    """What adapter_config.json says of every LoRA: rank and alpha, also by module, and how they combine."""

    rank: float
    alpha: float
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]
    stabilised: bool

    def of(self, module: str, rank: int) -> float | Refusal:
        """The factor before ``B A`` of a module whose A has `rank` rows."""
        expected = _by_pattern(self.ranks, module, self.rank)
        if expected != rank:
            return Refusal(
                f"{CONFIG} says rank {expected:g} for {module}, its lora_A has {rank}",
                "give the adapter_config.json of this very adapter",
            )
        alpha = _by_pattern(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def scaling(config: Any) -> Scaling | Refusal:
    """The content of adapter_config.json, every field of which may be anything."""
    if not isinstance(config, Mapping):
        return Refusal(
            "its adapters are LoRA, whose scaling (lora_alpha / r) a state dict does not hold; no usable "
            f"{CONFIG} lies beside it",
            MERGE,
        )
    kind = config.get("peft_type")
    if kind != "LORA":
        return Refusal(f"{CONFIG} says peft_type {str(kind)[:40]!r}; only LORA is computed", MERGE_ONLY)
    special = sorted(key for key in map(str, config) if key not in _INERT and config.get(key))
    if special:
        words = "DoRA (use_dora)" if "use_dora" in special else listed([key[:40] for key in special])
        return Refusal(f"{CONFIG} asks for {words}, which is not computed here", MERGE_ONLY)
    rank, alpha = _positive(config.get("r")), _positive(config.get("lora_alpha"))
    patterns = [_patterns(config.get(key)) for key in ("rank_pattern", "alpha_pattern")]
    if rank is None or alpha is None:
        return Refusal(f"{CONFIG} states no positive numbers r and lora_alpha", MERGE_ONLY)
    if patterns[0] is None or patterns[1] is None:
        return Refusal(
            f"{CONFIG} has a rank_pattern or alpha_pattern that is no plain module name with a number",
            MERGE_ONLY,
        )
    return Scaling(rank, alpha, patterns[0], patterns[1], config.get("use_rslora") is True)


def folded(view: View, config: Any) -> View:
    """The state dict with LoRA added to its weights and peft's names removed; other tensors stay."""
    if not is_marked(view):
        return view
    bases = {name.rpartition(".base_layer.")[0] for name in view if ".base_layer." in name}
    members: dict[str, dict[str, str]] = {base: {} for base in bases}
    loose: dict[str, str] = {}
    for name in view:
        owner = _owner(name, bases)
        if owner is not None:
            members[owner][name[len(owner) + 1 :]] = name
        elif match := re.fullmatch(r"(.+)\.lora_[AB](?:\..+)?", name):
            loose[match[1]] = name
    out = {name: made for name, made in view.items() if _owner(name, bases) is None}
    said = scaling(config)
    for base, names in members.items():
        out |= _layer(base, {rest: view[name] for rest, name in names.items()}, said)
    for module, name in loose.items():
        weight = f"{module}.weight"
        if weight in out:
            out[weight] = refused(
                [out[weight]],
                out[weight].shape,
                LORA,
                f"{name} lies beside {weight}; whether it is already added to it is not in the file",
                "merge the adapters, and save the network without them",
            )
    return _retrained(out)


def _owner(name: str, bases: set[str]) -> str | None:
    """The adapted module that a tensor belongs to: the longest beginning of its name."""
    end = len(name)
    while (end := name.rfind(".", 0, end)) > 0:
        if name[:end] in bases:
            return name[:end]
    return None


def _layer(base: str, parts: Mapping[str, Folded], said: Scaling | Refusal) -> View:
    """One adapted module: the tensors it has once its adapter is added."""
    own = {
        rest.removeprefix("base_layer."): made
        for rest, made in parts.items()
        if rest.startswith("base_layer.")
    }
    added = {rest: made for rest, made in parts.items() if not rest.startswith("base_layer.")}
    problem = said if isinstance(said, Refusal) else None
    factors: dict[str, dict[str, Folded]] = {}
    for rest, made in added.items():
        match = _MEMBER.fullmatch(rest)
        if match is None:
            kind = rest.split(".", 1)[0]
            words = "DoRA" if kind == "lora_magnitude_vector" else "an adapter that is not computed here"
            problem = Refusal(f"{base} has {words} ({base}.{rest})", MERGE_ONLY)
            break
        factors.setdefault(match[2], {})[f"{match[1]}.{match[3]}"] = made
    if problem is None and len(factors) != 1:
        found = listed(sorted(factors)) or "none of its factors"
        problem = Refusal(
            f"{base} has {len(factors)} adapters ({found}); which is active is unknown", MERGE_ONLY
        )
    if problem is None and not isinstance(said, Refusal):
        problem, result = _added(base, own, next(iter(factors.values())), said)
        if problem is None:
            return result
    assert problem is not None
    everything = list(parts.values())
    return {
        f"{base}.{rest}": refused(everything, made.shape, LORA, problem.problem, problem.advice)
        for rest, made in own.items()
    }


def _added(
    base: str, own: Mapping[str, Folded], factors: Mapping[str, Folded], said: Scaling
) -> tuple[Refusal | None, View]:
    """The module's tensors with ``s B A`` added, or why that is not possible."""
    weight, down, up = own.get("weight"), factors.get("lora_A.weight"), factors.get("lora_B.weight")
    if weight is None or down is None or up is None or "lora_A.bias" in factors:
        return Refusal(f"{base} lacks base_layer.weight, lora_A or lora_B as peft names them", MERGE_ONLY), {}
    kernel = weight.shape[2:]
    rank = down.shape[0] if down.shape else 0
    fits = (
        len(weight.shape) in (2, 4)
        and rank > 0
        and down.shape == (rank, *weight.shape[1:])
        and up.shape == (weight.shape[0], rank, *(1 for _ in kernel))
    )
    if not fits:
        shapes = f"lora_A {list(down.shape)} and lora_B {list(up.shape)}"
        return Refusal(f"{base}: {shapes} do not fit a weight of {list(weight.shape)}", MERGE_ONLY), {}
    factor = said.of(base.rpartition("base_model.model.")[2], rank)
    if isinstance(factor, Refusal):
        return factor, {}
    result = {f"{base}.{rest}": _named(made) for rest, made in own.items()}
    result[f"{base}.weight"] = computed(
        [weight, down, up], weight.shape, LORA, lambda t: t[0] + _delta(t[1], t[2]) * factor
    )
    if "lora_B.bias" in factors:
        bias, more = own.get("bias"), factors["lora_B.bias"]
        if bias is None or bias.shape != more.shape:
            return Refusal(f"{base}.lora_B has a bias that fits no bias of base_layer", MERGE_ONLY), {}
        result[f"{base}.bias"] = computed([bias, more], bias.shape, LORA, lambda t: t[0] + t[1] * factor)
    return None, result


def _delta(down: Tensor, up: Tensor) -> Tensor:
    """``B A`` of a linear layer, or of a convolution with one group: [O, ...]."""
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _named(made: Folded) -> Folded:
    """A tensor that only has another name in the file."""
    return made if made.how else Folded(made.sources, made.shape, made.make, LORA)


def _retrained(view: View) -> View:
    """``x.modules_to_save.NAME.y`` takes the place of ``x.original_module.y``; both become ``x.y``."""
    found: dict[str, dict[str, Folded]] = {}
    out: View = {}
    for name, made in view.items():
        match = _SAVED.fullmatch(name)
        if match is None:
            out[name] = made
            continue
        copies = found.setdefault(f"{match[1]}.{match[4]}", {})
        if match[3] is None:
            copies[match[2]] = made
    for name, copies in found.items():
        if len(copies) == 1:
            (made,) = copies.values()
            out[name] = computed([made], made.shape, SAVED, lambda t: t[0])
        elif copies:
            problem = f"{name} was retrained for {len(copies)} adapters ({listed(sorted(copies))})"
            shape = next(iter(copies.values())).shape
            out[name] = refused(list(copies.values()), shape, SAVED, problem, MERGE_ONLY)
    return out


def _positive(value: Any) -> float | None:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if numeric and 0 < value < _MAX_NUMBER else None


def _patterns(value: Any) -> dict[str, float] | None:
    """Numbers by module name; None where a name is a real regular expression, which is not evaluated."""
    if not value:
        return {}
    if not isinstance(value, Mapping) or len(value) > MAX_PATTERNS:
        return None
    found: dict[str, float] = {}
    for name, number in value.items():
        positive = _positive(number)
        if not isinstance(name, str) or positive is None or not _PLAIN_PATTERN.fullmatch(name):
            return None
        try:
            re.compile(name)
        except re.error:
            return None
        found[name] = positive
    return found


def _by_pattern(values: Mapping[str, float], module: str, usual: float) -> float:
    """The first value whose name ends the module's, as peft matches them."""
    for name, value in values.items():
        if re.fullmatch(rf"(?:.*\.)?(?:{name})", module):
            return value
    return usual
