"""Checkpoints of a training code of one's own.

It saves ``{"lab_version": 1, "epoch": index, "online": state_dict, "averaged": state_dict}``. Both networks
have a timm ViT called ``trunk`` and a head; the online one is wrapped in DistributedDataParallel.
"""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="example-lab",
    title="our lab's training code",
    origin="example/lab",
    example="ckpt_0009.pt",
    needs=("lab_version", "averaged/trunk.", "online/trunk."),
    networks=(
        NetworkAt("averaged", "averaged/trunk."),
        NetworkAt("online", "online/module.trunk."),
    ),
    evaluated="we report the averaged weights",
    epochs_from_field=1,  # the index of the epoch that has ended
    heads_by_width={192: 3, 384: 6},
    traps=("The stored epoch counts from zero",),
)
