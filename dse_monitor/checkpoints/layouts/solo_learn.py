"""Checkpoints of solo-learn, as vturrisi/solo-learn writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="solo-learn",
    title="solo-learn",
    origin="vturrisi/solo-learn",
    example="byol-imagenet100-3k2dhs8r-ep=99.ckpt",
    needs=("state_dict", "pytorch-lightning_version", "hyper_parameters:method"),
    networks=(
        NetworkAt("backbone", "state_dict/backbone."),
        NetworkAt("encoder", "state_dict/encoder."),
        NetworkAt("momentum_backbone", "state_dict/momentum_backbone."),
        NetworkAt("momentum_encoder", "state_dict/momentum_encoder."),
    ),
    evaluated="its own evaluation reads the online backbone",
    epochs_from_field=1,
    details={"small_stem_padding": 2},
    traps=("The stem for CIFAR images pads by two pixels",),
)
