"""State dicts of any origin, and where encoders are in them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

# Copies made for training that are evaluated only where a method says so.
_COPIES = (
    "student",
    "momentum",
    "target",
    "ema",
    "teacher",
    "encoder_k",
    "_k.",
    "key_encoder",
    "key_backbone",
)

# Where the encoder is in a file of unknown origin.
ANYWHERE = (
    NetworkAt("teacher", "*teacher*"),
    NetworkAt("ema", "*ema*", unless=("momentum",)),
    NetworkAt("encoder", "*", unless=_COPIES),
    NetworkAt("student", "*student*"),
    NetworkAt("momentum", "*momentum*"),
    NetworkAt("copy", "*"),
)

# The last entry: for files that no other recognises although an encoder is plainly there.
LAYOUT = Layout(
    name="plain",
    title="a state dict of any origin",
    origin="",
    example="model.pth",
    needs=(),
    networks=ANYWHERE,
    evaluated="a teacher or averaged copy where there is one",
    traps=("Whether a stored epoch counts from zero is not known; it is taken as finished epochs",),
)
