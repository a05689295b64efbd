"""Watch self-supervised training from the outside: dense quality (DSE) of every checkpoint, without labels.

Importing this package is cheap; what needs torch is imported where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dse_monitor.own_network import OwnNetwork
    from dse_monitor.reader import Run

__version__ = "0.1.0"
__all__ = ["OwnNetwork", "__version__", "open_run"]


def __getattr__(name: str) -> type[OwnNetwork]:
    if name != "OwnNetwork":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dse_monitor.own_network import OwnNetwork

    return OwnNetwork


def open_run(path: str | Path) -> Run:
    """Read a watched run, for notebooks and scripts; see :mod:`dse_monitor.reader`.

    Args:
        path: the run's folder, or its output folder.

    Raises:
        RunError: nothing was watched there, or a newer version of this program wrote it.
    """
    from dse_monitor import reader

    return reader.open_run(path)
