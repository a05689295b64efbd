"""Why no encoder is found in a file: the true cause, where the file shows one, and what to do.

Asked only after recognition has failed, of names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse_monitor.checkpoints.families.statedicts import StateDict

_OWN_CODE = "Build it with your own code: --network MODULE:FUNCTION"
# Networks of other libraries, by how a tensor's name ends or what stands in it: pattern, words.
_NETWORKS = (
    (r"(?:^|.*\.)transformer\.resblocks\.\d+\..+", "CLIP's own tower (OpenAI's or open_clip's names)"),
    (r"(?:^|.*\.)vision_model\.encoder\.layers\.\d+\..+", "a CLIP or SigLIP vision model of transformers"),
    (r"(?:^|.*\.)patch_embedding\.patch_embeddings\..+", "a network of MONAI"),
    (r"(?:^|.*\.)to_patch_embedding\.\d+\..+", "a network of vit-pytorch"),
    (r"(?:^|.*\.)(?:down|inc|up)\d*\.(?:maxpool_)?(?:double_)?conv\..+", "a U-Net"),
)  # fmt: skip
_EFFICIENT = re.compile(r"(?:^|.*\.)conv_stem\.weight")
_FLAT = re.compile(r"(?:.*\.)?_?flat_param(?:_\d+)?")
_OPTIMISER = ("optimizer", "optimiser", "optim", "optimizer_states", "optimizer_state_dict")


@dataclass(frozen=True)
class Cause:
    """Why there is no encoder: a clause, and what to do: a sentence without its full stop."""

    problem: str
    advice: str


def no_encoder(path: Path, tree: Any, states: Sequence[StateDict]) -> Cause | None:
    """The cause that a file shows for having no encoder; None where it shows none.

    Args:
        path: the file, for what lies beside it.
        tree: its contents.
        states: its dictionaries of tensors.
    """
    return (
        _sharded(tree, states)
        or _part_of_several(path)
        or _optimiser_only(tree, states)
        or _wrapped(states)
        or _adapters_only(states)
        or _known_network(states)
        or _without_names(tree, states)
    )


def _names(states: Sequence[StateDict]) -> list[str]:
    return [name for state in states for name in state.tensors]


def _sharded(tree: Any, states: Sequence[StateDict]) -> Cause | None:
    flat = next((name for name in _names(states) if _FLAT.fullmatch(name)), "")
    if flat:
        return Cause(
            f"it holds flat parameters of FSDP ({flat}), one rank's share of the weights without their names",
            "Save with a full state dict (FSDP.state_dict_type with StateDictType.FULL_STATE_DICT and "
            "FullStateDictConfig), or gather the ranks' files",
        )
    keys = set(map(str, tree)) if isinstance(tree, dict) else set()
    join = "Join the shards once with the script DeepSpeed left beside them: python zero_to_fp32.py . OUTPUT"
    if "optimizer_state_dict" in keys and keys & {"ds_version", "ds_config", "zero_stage"}:
        return Cause("it is the optimiser's part of one DeepSpeed rank (ZeRO), without the network", join)
    if "module" in keys and keys & {"ds_version", "ds_config", "param_shapes"}:
        empty = sum(0 in ref.shape for state in states for ref in state.tensors.values())
        if empty:
            return Cause(
                f"{empty} of its tensors are empty: one DeepSpeed rank's file under ZeRO stage 3", join
            )
    return None


def _part_of_several(path: Path) -> Cause | None:
    match = re.fullmatch(
        r"(consolidated|model|mp_rank)([._-])(\d\d)(\.pt|\.pth|_model_states\.pt)", path.name
    )
    if match is None or match[1] == "model":
        return None
    try:
        others = sorted(other.name for other in path.parent.glob(f"{match[1]}{match[2]}??{match[4]}"))
    except OSError:
        return None
    if len(others) < 2:
        return None
    return Cause(
        f"it is one of {len(others)} files that model parallelism cut a network into ({others[0]}, ...)",
        "Join them with the code that wrote them, and give the whole network",
    )


def _optimiser_only(tree: Any, states: Sequence[StateDict]) -> Cause | None:
    if isinstance(tree, dict) and {"state", "param_groups"} <= set(map(str, tree)) and len(tree) <= 4:
        return Cause(
            "it is the state of an optimiser and holds no network", "Give the file with the model's weights"
        )
    if states and all(any(part in _OPTIMISER for part in state.path) for state in states):
        place = ".".join(states[0].path[:1])
        return Cause(
            f"its only tensors are those of an optimiser (under {place[:60]!r})",
            "Give the file with the model's weights",
        )
    return None


def _wrapped(states: Sequence[StateDict]) -> Cause | None:
    for state in states:
        for made in state.folding.folded.values():
            if made.refusal is not None:
                advice = made.refusal.advice
                return Cause(made.refusal.problem, advice[:1].upper() + advice[1:])
    return None


def _adapters_only(states: Sequence[StateDict]) -> Cause | None:
    names = _names(states)
    low = [name for name in names if ".lora_" in name]
    if low and len(low) * 2 >= len(names):
        return Cause(
            f"it holds low-rank factors ({low[0]}) without the weights they are added to",
            "Merge them first (peft: merge_and_unload()) and give the whole network",
        )
    return None


def _known_network(states: Sequence[StateDict]) -> Cause | None:
    names = _names(states)
    for pattern, words in _NETWORKS:
        matcher = re.compile(pattern)
        found = next((name for name in names if matcher.fullmatch(name)), "")
        if found:
            return Cause(f"it looks like {words}, which is not read ({found})", _OWN_CODE)
    stem = next((name for name in names if _EFFICIENT.fullmatch(name)), "")
    if stem:
        return Cause(
            f"it looks like an EfficientNet or MobileNet of timm, whose sort its shapes do not tell ({stem})",
            "Name it with --arch MODEL",
        )
    if names and sum(name.endswith(".kernel") for name in names) * 4 >= len(names):
        return Cause(
            "its weights are called kernel, as JAX and Keras name them, and lie in their order of axes",
            "Convert it with the library that wrote it, and save torch's weights",
        )
    return None


def _without_names(tree: Any, states: Sequence[StateDict]) -> Cause | None:
    names = _names(states)
    if 0 < len(names) <= 4:
        return Cause(
            f"it holds only {len(names)} tensors ({', '.join(names)}), as a head or a projector does",
            "Give the checkpoint of the whole network",
        )
    if not names and isinstance(tree, (list, tuple)) and tree:
        return Cause("it is a list of values without names", "Save the network's state_dict()")
    return None
