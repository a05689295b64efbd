"""Tensor shapes -> the one network they belong to, or an error that says what is ambiguous or missing.

Dialects find encoders by their names; the family a dialect names describes the network. Nothing is looked up
by the name of a published model: any width, depth, patch, window or block count is built from the shapes
themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints import families
from dse_monitor.checkpoints.families.network import Hints, Network, NotThisNetwork
from dse_monitor.checkpoints.families.statedicts import Shape, StateDict
from dse_monitor.checkpoints.meta import without_storage
from dse_monitor.checkpoints.recognition.dialects import HEADS, Found, find
from dse_monitor.errors import DSEError

if TYPE_CHECKING:
    from torch import nn


# Settings of modules that change nothing an evaluated network computes.
_OF_NO_EFFECT = frozenset(
    (
        "training", "p", "drop_prob", "inplace", "init_values", "mlp_ratio", "scale_by_keep",
        "strict_img_size", "dynamic_img_pad", "flatten",
        "img_size", "grid_size", "num_patches", "grad_checkpointing", "always_partition", "dynamic_mask",
    )
)  # fmt: skip
_NOTHING = ("Identity", "Dropout", "DropPath", "Sequential", "ModuleList")


def encoders(states: list[StateDict]) -> list[Found]:
    """Every encoder in the file, in the file's order; last what only the dialects that families bring find.

    What shares tensors with an encoder that is found already is left out, so that a plugin cannot take a
    network from those that read it without the plugin.
    """
    found = list(find(states))
    for other in find(states, families.dialects()):
        if not any(_overlap(one, other) for one in found):
            found.append(other)
    return found


def _overlap(one: Found, other: Found) -> bool:
    return one.state is other.state and (
        one.prefix.startswith(other.prefix) or other.prefix.startswith(one.prefix)
    )


def recognise(family: str, shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network of these tensors, named as the network that is built names them.

    Args:
        family: key of FAMILIES, or the name of a plugin's.
        shapes: shape of each tensor of the encoder; heads and projectors may be among them.
        hints: what is known beside the shapes.

    Raises:
        NotThisNetwork: the tensors are not a network of this family that can be built.
        AmbiguousArchitecture: several networks fit, and the wrong one would load silently.
    """
    origin = families.REGISTRY.origin(family)
    try:
        network = families.load(family).recognise(shapes, hints)
    except (DSEError, NotThisNetwork):
        raise
    except Exception as error:
        if not origin:
            raise
        raise NotThisNetwork(
            f"the network family {family!r} of {origin} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, Network):
        raise NotThisNetwork(f"the network family {family!r} of {origin} returned no Network: {network!r}")
    return network if network.tensors else _looked_at(network)


def build(network: Network) -> nn.Module:
    """The module in evaluation mode, its parameters without storage (device ``meta``), its buffers filled.

    Parameters get their storage when the file's tensors are assigned, so memory holds the encoder once.

    Raises:
        NotThisNetwork: timm cannot build it, or builds it with other tensors than `Network.tensors`.
    """
    module = _built(network)
    made = _shapes(module)
    if made != network.tensors:
        odd = sorted(dict(made.items() ^ network.tensors.items()))
        raise NotThisNetwork(
            f"the installed timm builds {network.description} with other tensors than known here, such as "
            f"{odd[0]}; install another release of timm"
        )
    return module.eval().requires_grad_(False)


def computes_the_same(one: Network, other: Network) -> bool:
    """Whether two networks are built alike: the same modules in the same places, with the same settings."""
    return _settings(one) == _settings(other)


def _settings(network: Network) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every module's class and plain settings, but for heads and for what only training or checks look at."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, part in _built(network).named_modules():
        if name.split(".", 1)[0] in HEADS or not name:
            continue
        values = {
            key: value
            for key, value in vars(part).items()
            if isinstance(value, (bool, int, float, str, tuple))
            and key not in _OF_NO_EFFECT
            and key[0] != "_"
        }
        if values or list(part.parameters(recurse=False)) or not list(part.children()):
            found[name] = (type(part).__name__, values)
    return {name: value for name, value in found.items() if value[0] not in _NOTHING}


def _built(network: Network) -> nn.Module:
    try:
        return without_storage(network.build)
    except NotThisNetwork:
        raise
    except Exception as error:
        raise NotThisNetwork(
            f"{network.description} cannot be built: {type(error).__name__}: {error}"
        ) from error


def _looked_at(network: Network) -> Network:
    """The network with the tensors that are in it when it is built."""
    module = _built(network)
    buffers = frozenset(name for name, _ in module.named_buffers())
    return dataclasses.replace(network, tensors=_shapes(module), buffers=buffers)


def _shapes(module: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


__all__ = ["build", "encoders", "recognise"]
