"""docs/methods.md says what the method files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dse_monitor.trainers import methods_table
from dse_monitor.trainers.methods import METHODS, load

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.fixture(scope="module")
def text() -> str:
    return methods_table.document()


def test_document_is_current(text):
    assert DOCUMENT.read_text(encoding="utf-8") == text, (
        "docs/methods.md is out of date: run `python -m dse_monitor.trainers.methods_table > docs/methods.md`"
    )


def test_every_method_has_one_full_row(text):
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    head, _, *body = rows
    assert [re.search(r"`(\w+)`", row[0])[1] for row in body] == list(METHODS)
    assert all(len(row) == len(head) and all(row) for row in body)


def test_learning_rate_is_the_one_the_optimiser_sees():
    # 0.3 per 256 images at batch 4096; 0.03 as written, whatever the batch
    for name, peak in (("byol", 4.8), ("densecl", 0.03)):
        method_type = load(name)
        assert methods_table.peak_lr(method_type, method_type.recipe_type()) == pytest.approx(peak)


def test_method_that_does_not_say_where_it_differs_is_named(monkeypatch):
    monkeypatch.setattr(load("dino"), "differences", "")
    with pytest.raises(ValueError, match="dino: `differences` is not set"):
        methods_table.row("dino")


def test_forward_without_a_word_on_its_tokens_is_named(monkeypatch):
    monkeypatch.setattr(load("dino").forward, "__doc__", "Nothing of the kind.")
    with pytest.raises(ValueError, match=r"dino: the table wants 'Dense: \.\.\.'"):
        methods_table.row("dino")
