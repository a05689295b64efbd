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

# Where the encoder is in a file of unknown origin. Where parts are named as a method's paper names them, what
# its authors evaluate decides; else averaged copies come first.
ANYWHERE = (
    NetworkAt("teacher", "*teacher*", because="methods with a teacher evaluate it"),
    NetworkAt(
        "ema_model", "*ema_model.*", because="ema-pytorch calls the averaged copy so, which is what it is for"
    ),
    NetworkAt("ema", "*ema*", unless=("momentum",), because="an averaged copy is kept to be evaluated"),
    NetworkAt(
        "target_encoder",
        "*target*",
        beside="context anywhere",
        because="beside a context encoder it is what I-JEPA and V-JEPA evaluate",
    ),
    NetworkAt(
        "online",
        "*online*",
        beside="target anywhere",
        because="beside a target network it is what BYOL evaluates",
    ),
    NetworkAt("encoder", "*", unless=_COPIES, because="it is not named as a copy of another"),
    NetworkAt("student", "*student*", because="nothing in the file is named teacher or average"),
    NetworkAt("momentum", "*momentum*", because="nothing in the file is named otherwise"),
    NetworkAt("copy", "*", because="it comes first in the file"),
)

# The last entry: for files that no other recognises although an encoder is plainly there.
LAYOUT = Layout(
    name="plain",
    title="a state dict of any origin",
    origin="",
    example="model.pth",
    needs=(),
    networks=ANYWHERE,
    evaluated="a teacher or averaged copy where there is one, else what a method with these names evaluates",
    traps=("Whether a stored epoch counts from zero is not known; it is taken as finished epochs",),
)
