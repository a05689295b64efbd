"""Checkpoints of VISSL, as facebookresearch/vissl writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="vissl",
    title="VISSL",
    origin="facebookresearch/vissl",
    example="model_phase10.torch",
    needs=("classy_state_dict",),
    networks=(NetworkAt("trunk", "classy_state_dict.base_model.model.trunk/*"),),
    evaluated="the trunk",
    traps=("Phases count from zero",),
)
