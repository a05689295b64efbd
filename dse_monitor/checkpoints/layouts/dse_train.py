"""Checkpoints of dse-train."""

from __future__ import annotations

from dse_monitor.checkpoints.layouts.layout import Layout, NetworkAt

LAYOUT = Layout(
    name="dse-train",
    title="dse-train",
    origin="this project",
    example="checkpoint_0010.pth",
    needs=("format", "schema", "backbone", "evaluated", "model"),
    networks=(
        NetworkAt("teacher", "model/teacher.backbone."),
        NetworkAt("student", "model/student.backbone."),
        NetworkAt("encoder", "model/*"),
    ),
    evaluated="the file names the evaluated network itself",
    evaluated_field="evaluated",
    defines=True,
    details={"pad_first": True},  # of its Swins, as in the code of their methods' authors
)
