"""Tensor shapes -> the one timm network they belong to, or an error that says what is ambiguous or missing.

A family is one function in `families/`; FAMILIES lists them. Nothing is looked up by the name of a published
model: any width, depth, patch, window or block count is built from the shapes themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dse_monitor.checkpoints.families import convnext, dinov3, resnet, swin, vit
from dse_monitor.checkpoints.families import named as by_name
from dse_monitor.checkpoints.families.network import Hints, Network, NotThisNetwork
from dse_monitor.checkpoints.families.statedicts import Shape

if TYPE_CHECKING:
    from torch import nn

FAMILIES: Mapping[str, Callable[[Mapping[str, Shape], Hints], Network]] = {
    "vit": vit.recognise,
    "dinov3": dinov3.recognise,
    "resnet": resnet.recognise,
    "swin": swin.recognise,
    "convnext": convnext.recognise,
}


def recognise(family: str, shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The network of these tensors, named as timm names them.

    Args:
        family: key of FAMILIES.
        shapes: shape of each tensor of the encoder; heads and projectors may be among them.
        hints: what is known beside the shapes.

    Raises:
        NotThisNetwork: the tensors are no network of this family that can be built.
        AmbiguousArchitecture: several networks fit, and the wrong one would load silently.
    """
    network = FAMILIES[family](shapes, hints)
    return network if network.tensors else _looked_at(network)


def named(arch: str, shapes: Mapping[str, Shape], hints: Hints) -> Network:
    """The timm model called `arch`, whatever its family.

    Raises:
        NotThisNetwork: timm has no such model, or cannot build it.
    """
    return by_name.recognise(arch, shapes, hints)


def build(network: Network) -> nn.Module:
    """The module in evaluation mode, its parameters without storage (device ``meta``), its buffers filled.

    Parameters get their storage when the file's tensors are assigned, so memory holds the encoder once.

    Raises:
        NotThisNetwork: timm cannot build it, or builds it with other tensors than `Network.tensors`.
    """
    with _parameters_on_meta():
        module = network.build()
    made = _shapes(module)
    if made != network.tensors:
        odd = sorted(dict(made.items() ^ network.tensors.items()))
        raise NotThisNetwork(
            f"the installed timm builds {network.description} with other tensors than known here, such as "
            f"{odd[0]}; install another release of timm"
        )
    return module.eval().requires_grad_(False)


def _looked_at(network: Network) -> Network:
    """The network with the tensors that are in it when it is built."""
    with _parameters_on_meta():
        module = network.build()
    buffers = frozenset(name for name, _ in module.named_buffers())
    return dataclasses.replace(network, tensors=_shapes(module), buffers=buffers)


def _shapes(module: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Give every parameter registered meanwhile the device ``meta``; buffers keep their computed values."""
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def to_meta(module: nn.Module, name: str, parameter: Any) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        handle.remove()


__all__ = ["FAMILIES", "build", "named", "recognise"]
