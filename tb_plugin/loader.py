"""TensorBoard's entry point.

An error while importing this module would end TensorBoard, so it imports almost nothing; everything else is
imported in ``load``, whose failure only disables the tab.
"""

from __future__ import annotations

from typing import Any

from tensorboard.plugins import base_plugin


class DSELoader(base_plugin.TBLoader):
    """Sets the sampling hints of the tab and makes its plugin."""

    def define_flags(self, parser: Any) -> None:
        """Add ``--dse_full_scalars``: TensorBoard then thins no scalars, the training loss among them."""
        parser.add_argument_group("DSE tab").add_argument(
            "--dse_full_scalars",
            action="store_true",
            help="Keep every scalar event in memory instead of 1,000 per tag, so that the training loss in "
            "the DSE tab is complete.",
        )

    def fix_flags(self, flags: Any) -> None:
        """Keep all evaluations in memory, unless the user chose a number, and let live runs be read whole.

        Args:
            flags: TensorBoard's parsed command line, changed in place.
        """
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault("dse", 0)  # 0 keeps all; TensorBoard's own default is 100 or 10 events per tag
            if getattr(flags, "dse_full_scalars", False):
                samples.setdefault("scalars", 0)
        if getattr(flags, "reload_multifile", None) is None:
            # Without it the Python loader stops reading a run's older file once a newer one appears.
            flags.reload_multifile = True

    def load(self, context: base_plugin.TBContext) -> Any:
        """The plugin, or an exception that TensorBoard logs before it goes on without the tab."""
        from dse_monitor.tb_plugin.plugin import DSEPlugin

        return DSEPlugin(context)
