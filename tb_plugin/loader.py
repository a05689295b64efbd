"""TensorBoard's entry point.

An error while importing this module, or in a hook that handles flags, would end TensorBoard. So this module
imports almost nothing, the hooks report their own errors and go on, and everything else is imported in
``load``, whose failure only disables the tab.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from tensorboard.plugins import base_plugin

LOGGER = logging.getLogger("dse_monitor.tb_plugin")


class DSELoader(base_plugin.TBLoader):
    """Sets the sampling hints of the tab and makes its plugin."""

    def define_flags(self, parser: Any) -> None:
        """Add ``--dse_full_scalars``: TensorBoard then thins no scalars, the training loss among them."""
        with _going_on("--dse_full_scalars is not available"):
            parser.add_argument_group("DSE tab").add_argument(
                "--dse_full_scalars",
                action="store_true",
                help="Keep every scalar event in memory instead of 1,000 per tag, so that the training loss "
                "in the DSE tab is complete.",
            )

    def fix_flags(self, flags: Any) -> None:
        """Keep all evaluations in memory, unless the user chose a number, and let live runs be read whole.

        Args:
            flags: TensorBoard's parsed command line, changed in place.
        """
        with _going_on("TensorBoard may show a sample of the checkpoints"):
            samples = getattr(flags, "samples_per_plugin", None)
            if isinstance(samples, dict):
                samples.setdefault("dse", 0)  # 0 keeps all; TensorBoard's own default is 100 or 10 per tag
                if getattr(flags, "dse_full_scalars", False):
                    samples.setdefault("scalars", 0)
            if getattr(flags, "reload_multifile", None) is None:
                # Without it the Python loader stops reading a run's older file once a newer one appears.
                flags.reload_multifile = True

    def load(self, context: base_plugin.TBContext) -> Any:
        """The plugin, or an exception that TensorBoard logs before it goes on without the tab."""
        from dse_monitor.tb_plugin.plugin import DSEPlugin

        return DSEPlugin(context)


@contextlib.contextmanager
def _going_on(consequence: str) -> Iterator[None]:
    """Report an error and what follows from it instead of ending TensorBoard."""
    try:
        yield
    except Exception as error:
        LOGGER.warning("DSE tab: %s: %s (%s)", consequence, error, type(error).__name__)
