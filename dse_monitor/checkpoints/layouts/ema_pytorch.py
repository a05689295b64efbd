"""Checkpoints of lucidrains/ema-pytorch: EMA.state_dict(), alone or inside a larger file."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="ema-pytorch",
    title="ema-pytorch",
    origin="lucidrains/ema-pytorch",
    example="ema.pt",
    needs=("ema_model anywhere", "initted anywhere"),
    networks=(
        NetworkAt("ema_model", "*ema_model.*"),
        NetworkAt("online_model", "*online_model.*"),
        NetworkAt("model", "*"),
    ),
    evaluated="the averaged copy is what the library is for: ema_model is called, online_model is trained",
    traps=("Its step counts updates of the average, not finished epochs",),
)
