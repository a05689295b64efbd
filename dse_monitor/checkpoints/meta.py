"""Building a module without storage for its parameters. Importing this loads no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


def without_storage(make: Callable[[], Any]) -> Any:
    """What `make` builds, its parameters on the device ``meta``, its buffers filled.

    A constructor that reads its parameters gets real ones, which lose their storage afterwards. The default
    device is never ``meta``: libraries keep tables that they compute once for the whole process, and would
    keep them without numbers.
    """
    try:
        with _parameters_on_meta():
            module = make()
    except (RuntimeError, NotImplementedError):
        module = None
    if module is None or any(buffer.is_meta for buffer in module.buffers()):
        module = make()
        _drop_parameters(module)
    return module


def _drop_parameters(module: Any) -> None:
    from torch.nn import Parameter

    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            part._parameters[name] = Parameter(parameter.detach().to("meta"), requires_grad=False)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Give every parameter registered meanwhile the device ``meta``; buffers keep their computed values."""
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def to_meta(module: Any, name: str, parameter: Any) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        handle.remove()
