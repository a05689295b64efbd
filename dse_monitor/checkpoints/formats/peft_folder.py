"""Folders of peft: adapters without the network they belong to, which lies in a folder of its own.

An adapter's tensors are called ``base_model.model.x.lora_A.weight``, where x is a module of the network as it
was in memory; a network's own files may carry one more name before x, or one less.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dse_monitor.checkpoints.reading.contents import TensorRef, shown
from dse_monitor.errors import CheckpointError

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PEFT = "base_model.model."
_FACTOR = re.compile(r"(.+)\.(lora_[AB])\.(weight|bias)")
_MERGE = "merge_and_unload() the model with peft and give the whole network"
# Values of init_lora_weights that leave the network's own weights as they are (peft 0.21, LoraConfig).
_HARMLESS = (True, False, None, "gaussian", "orthogonal", "eva")


def base_folder(weights: Path, config: Any) -> Path:
    """Where the network lies that adapters were trained on, by their adapter_config.json.

    Raises:
        CheckpointError: nothing says so, it is not on this machine, or training began by changing it.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(
            f"{weights} holds adapters only (peft) and no readable adapter_config.json lies beside it; "
            f"{_MERGE}"
        )
    name, init = config.get("base_model_name_or_path"), config.get("init_lora_weights", True)
    if init not in _HARMLESS:
        raise CheckpointError(
            f"{weights} holds adapters only (peft), whose initialisation ({shown(init, 40)}) changed the "
            f"network they were trained on; {_MERGE}"
        )
    if not isinstance(name, str) or not name or len(name) > 1024 or "\0" in name:
        raise CheckpointError(
            f"{weights} holds adapters only (peft), and its adapter_config.json names no network; {_MERGE}"
        )
    here = weights.parent
    for folder in (Path(name), here / name, here.parent / name):
        if folder.is_dir() and folder.resolve() != here.resolve():
            return folder
    raise CheckpointError(
        f"{weights} holds adapters only (peft); the network they belong to, {shown(name)}, is no folder on "
        f"this machine; {_MERGE}, or put it there"
    )


def joined(weights: Path, adapter: Any, network: Any) -> dict[str, Any]:
    """Adapters and network as one state dict, under the names it would have in peft's memory.

    Args:
        weights: for messages.
        adapter: tensors of the adapter's file by name.
        network: tensors of the network's file by name.

    Raises:
        CheckpointError: they do not belong together.
    """
    if not isinstance(adapter, dict) or not isinstance(network, dict):
        raise CheckpointError(f"{weights} or its network is no list of tensors by name; {_MERGE}")
    own = {name.removeprefix(PEFT): value for name, value in adapter.items() if isinstance(name, str)}
    factors = {name: match for name in own if (match := _FACTOR.fullmatch(name))}
    modules = {match[1] for match in factors.values()}
    base = {
        name: value
        for name, value in network.items()
        if isinstance(value, TensorRef) and isinstance(name, str)
    }
    rename = next(
        (
            change
            for change in _renamings(base, modules)
            if modules
            <= {name.removesuffix(".weight") for name in map(change, base) if name.endswith(".weight")}
        ),
        None,
    )
    if rename is None or not modules:
        first = next(iter(sorted(modules)), "none")
        raise CheckpointError(
            f"{weights} holds adapters only (peft), for modules ({shown(first)}, ...) that the network "
            f"beside it does not name so; {_MERGE}"
        )
    tree: dict[str, Any] = {}
    for name, value in base.items():
        module, _, rest = rename(name).rpartition(".")
        tree[f"{PEFT}{module}.base_layer.{rest}" if module in modules else f"{PEFT}{rename(name)}"] = value
    for name, value in own.items():  # what was trained besides, heads and biases, replaces the network's own
        match = factors.get(name)
        tree[f"{PEFT}{match[1]}.{match[2]}.default.{match[3]}" if match else f"{PEFT}{name}"] = value
    return tree


def _renamings(base: Mapping[str, Any], modules: set[str]) -> Iterator[Callable[[str], str]]:
    """How a name in the network's file may become the one it has in memory, the plainest first."""
    yield lambda name: name
    for first in dict.fromkeys(name.partition(".")[0] for name in list(base)[:1000]):
        yield lambda name, first=first: name.removeprefix(f"{first}.")
    for first in dict.fromkeys(module.partition(".")[0] for module in sorted(modules)[:1000]):
        yield lambda name, first=first: f"{first}.{name}"
