"""Checkpoints of mmpretrain, mmselfsup, OpenSelfSup, as open-mmlab/mmpretrain writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="mmpretrain",
    title="mmpretrain, mmselfsup, OpenSelfSup",
    origin="open-mmlab/mmpretrain",
    example="epoch_10.pth",
    needs=("meta", "state_dict"),
    networks=(
        NetworkAt("backbone", "state_dict/backbone."),
        NetworkAt("online", "state_dict/online_net.0."),
        NetworkAt("encoder_q", "state_dict/encoder_q.0."),
        NetworkAt("teacher", "state_dict/*teacher*"),
        NetworkAt("target", "state_dict/*target*"),
        NetworkAt("momentum", "state_dict/*momentum*"),
        NetworkAt("encoder_k", "state_dict/encoder_k.0."),
    ),
    evaluated="its own evaluation reads the online backbone",
)
