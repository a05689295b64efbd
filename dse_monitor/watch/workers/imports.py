"""What a worker imports before its first checkpoint, without PyTorch's compiler.

torchvision and timm load the compiler (`torch._dynamo`, and sympy with it) for two decorators: a third of a
worker's start, every time a training saves. A worker measures and never compiles.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
NEEDED = ("dse_monitor.checkpoints.load", "dse_monitor.metric.measurement", "dse_monitor.evaluation.maps")


def load() -> None:
    """Import what evaluating needs: seconds that the watcher hides behind a file's lying still."""
    importlib.import_module("torch")
    # Other versions may ask more of the compiler than is put in its place; then it is loaded after all.
    with contextlib.suppress(ImportError, AttributeError, TypeError), without_compiler():
        importlib.import_module("timm")
    for name in ("timm", *NEEDED):
        importlib.import_module(name)


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Stand-ins for the compiler while other modules are imported; it can be used afterwards."""
    if COMPILER in sys.modules:
        yield
        return
    package, utils = ModuleType(COMPILER), ModuleType(f"{COMPILER}.utils")
    package.__path__ = []
    vars(package).update(disable=_as_it_is, utils=utils)
    vars(utils).update(is_compile_supported=lambda device: False)
    stand_ins = {module.__name__: module for module in (package, utils)}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _as_it_is(function: Any = None, *arguments: Any, **options: Any) -> Any:
    """``torch.compiler.disable`` where nothing is compiled, as a decorator with options and without."""
    return function if function is not None else _as_it_is
