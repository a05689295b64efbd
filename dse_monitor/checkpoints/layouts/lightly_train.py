"""Checkpoints of lightly-train, as lightly-ai/lightly-train writes them."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="lightly-train",
    title="lightly-train",
    origin="lightly-ai/lightly-train",
    example="epoch=9-step=1250.ckpt",
    needs=("state_dict", "pytorch-lightning_version"),
    networks=(
        NetworkAt("teacher", "state_dict/*teacher_embedding_model.wrapped_model.*"),
        NetworkAt("model", "state_dict/*embedding_model.wrapped_model.*", unless=("student",)),
        NetworkAt("student", "state_dict/*student_embedding_model.wrapped_model.*"),
    ),
    evaluated="the teacher of the DINO family, else the only model: what lightly-train exports",
    epochs_from_field=1,
    traps=("Whole modules are pickled beside the state dict; they are not imported",),
)
