"""The metric and the regulariser. Imports torch, nothing else of this project, and only when asked."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dse_monitor.metric.components import Components, NonFiniteFeatures
    from dse_monitor.metric.measurement import PseudoLabels, average, measure
    from dse_monitor.metric.regularizer import DSERegularizer

_HOMES = {
    "Components": "components",
    "DSERegularizer": "regularizer",
    "NonFiniteFeatures": "components",
    "PseudoLabels": "measurement",
    "average": "measurement",
    "measure": "measurement",
}

__all__ = ["Components", "DSERegularizer", "NonFiniteFeatures", "PseudoLabels", "average", "measure"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
