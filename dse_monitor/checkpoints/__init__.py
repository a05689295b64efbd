"""From a file somebody else wrote to an encoder. Nothing of the file is ever executed.

Names are looked up when first used, so `dse_monitor.checkpoints.names` and `.archive` load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dse_monitor.checkpoints.load import load_encoder

__all__ = ["load_encoder"]


def __getattr__(name: str) -> Any:
    if name != "load_encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.load").load_encoder
