"""What `inspect` says about a checkpoint, as data and as text, and the documented table of layouts."""

import json
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from dse_monitor.checkpoints import load_encoder
from dse_monitor.checkpoints.inspect import inspect_checkpoint, layouts_table, render
from dse_monitor.checkpoints.layouts import LAYOUTS
from dse_monitor.checkpoints.layouts.document import document

DOCUMENT = Path(__file__).parents[2] / "docs" / "layouts.md"


@pytest.fixture
def path(saved):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=0)
    teacher = {f"backbone.{name}": tensor for name, tensor in vit.state_dict().items()}
    head = {f"head.mlp.{i}.weight": torch.zeros(4, 4) for i in range(3)}
    student = {f"module.{name}": tensor for name, tensor in {**teacher, **head}.items()}
    content = {"student": student, "teacher": {**teacher, **head}, "dino_loss": {}, "epoch": 11}
    return saved(content, "checkpoint0009.pth")


def test_inspection_tells_what_would_be_loaded(path):
    found = inspect_checkpoint(path)
    encoder = load_encoder(path)
    assert (found.container, found.complete, found.safe) == ("torch zip", True, True)
    assert (found.layout, found.encoder, found.location) == ("dino", "teacher", "teacher/backbone.")
    assert (found.network, found.epoch, found.step) == (encoder.arch, encoder.epoch, encoder.step)
    assert (found.num_tokens, found.width, found.preprocessing.image_size) == (16, 192, (32, 32))
    assert found.heads.startswith("3 (")
    assert found.bytes_read == sum(t.nbytes for t in encoder.module.state_dict().values())
    assert found.missing == ()
    assert found.unused == ("head.mlp.0.weight", "head.mlp.1.weight", "head.mlp.2.weight")
    assert found.others == (("student", "student/module.backbone."),)


def test_inspection_reads_no_weights(path, monkeypatch):
    from dse_monitor.checkpoints.archive import Archive

    monkeypatch.setattr(Archive, "read", lambda self, refs: pytest.fail("weights were read"))
    assert inspect_checkpoint(path).network


def test_inspection_is_plain_json(path):
    data = json.loads(json.dumps(inspect_checkpoint(path).to_json()))
    assert data["layout"] == "dino"
    assert data["others"] == [["student", "student/module.backbone."]]


def test_text_says_everything_within_a_hundred_columns(path):
    text = render(inspect_checkpoint(path))
    for part in (
        "torch zip, complete",
        "nothing of the file was executed",
        "dino (DINO)",
        "teacher at 'teacher/backbone.'",
        "vit 192x2, 3 heads, patch 8",
        "16 x 192 at 32 px",
        "11 done; field 'epoch' = 11",
        "not stored and not in the name",
        "name says 10",
        "head.mlp.* (3)",
        "--encoder student",
        "--num-heads N",
    ):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_options_change_what_is_inspected(path):
    assert inspect_checkpoint(path, encoder="student").encoder == "student"
    assert inspect_checkpoint(path, num_heads=6).network.startswith("vit 192x2, 6 heads")
    assert inspect_checkpoint(path, layout="plain", num_heads=3).layout == "plain"


def test_table_has_a_row_for_every_layout():
    rows = layouts_table()
    assert [row["name"] for row in rows] == list(LAYOUTS)
    assert all(row["title"] and row["example"] and row["evaluated"] for row in rows)


def test_documentation_is_generated_from_the_table():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), (
        "docs/layouts.md is out of date: "
        "run `python -m dse_monitor.checkpoints.layouts.document > docs/layouts.md`"
    )
