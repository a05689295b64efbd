"""docs/networks.md: which tokens are measured of which network, made by ``python -m`` this module."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from dse_monitor.checkpoints.named.towers import OTHER_INPUTS, TOWERS, Tower

# What benchmarks/timm_sweep.py measured of the smallest network of each class of timm.
CLASSES = Path(__file__).with_name("classes.json")

_FAMILIES = (
    (
        "vit",
        "tokens of the patches after the final LayerNorm, before any norm that belongs to a head",
        "blocks",
    ),
    ("dinov3", "tokens of the patches after the final LayerNorm", "blocks"),
    ("resnet", "the last stage's map, after its last activation", "the stem and the stages"),
    ("swin", "the last stage's map after the final LayerNorm", "stages"),
    ("convnext", "the last stage's map; normed only where the network norms before it pools", "stages"),
)


def document() -> str:
    """The text of docs/networks.md.

    ``python -m dse_monitor.checkpoints.named.document > docs/networks.md`` writes it; a test compares.
    """
    lines = [
        "# Networks and their dense tokens",
        "",
        "Generated from the tables in `dse_monitor/checkpoints/named/`; do not edit by hand.",
        "",
        *_paragraph(
            "DSE is measured on the dense tokens of one layer: one vector for each place of a grid, read "
            "row by row. By default that is what the network itself gives out at its end, before it "
            "pools. `--layer N` takes another: a block of a transformer or a stage of other networks, "
            "counted from 1. `dse-monitor inspect` says of a checkpoint how many layers there are."
        ),
        "",
        "## Recognised from their shapes",
        "",
        "| family | dense tokens | layers |",
        "| --- | --- | --- |",
        *(f"| {name} | {tokens} | {layers} |" for name, tokens, layers in _FAMILIES),
        "",
        "## Built by timm",
        "",
        *_paragraph(
            "With `--arch NAME`, or where timm's own training or its config.json names the network. timm "
            "builds it, and its dense tokens are what its `forward_features` returns, without class token "
            "and registers. `--arch-option KEY=VALUE` passes arguments on: `img_size='(96, 160)'`, "
            "`depth=6`. A name counts only if every tensor of the network is in the file in its shape. "
            "Channels follow from the stem; the image size from the options, the record, or square "
            "position tables."
        ),
        "",
        *_paragraph(
            "Where the output is the map of a stage alone, `forward_features` returns no tokens of one "
            "grid, and a stage is to be chosen with `--layer N`. "
            "Measured of the smallest network of each class. Where the last layer is another, "
            "`forward_features` goes on after the last stage, most often through one more convolution."
        ),
        "",
        "| class | example | output | other tokens | layers | last layer by number |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_class(kind, row) for kind, row in json.loads(CLASSES.read_text(encoding="utf-8")).items()),
        "",
        "## Built by transformers",
        "",
        *_paragraph(
            "Where config.json names one of these as `model_type` (`pip install transformers`). Its own "
            "class builds it from the settings there; nothing is fetched, and code that a file brings "
            "along is not run. Dense tokens are the last hidden state without class tokens. Only that "
            "layer can be read."
        ),
        "",
        "| model_type | class | other tokens | at the end |",
        "| --- | --- | --- | --- |",
        *(_tower(name, tower) for name, tower in TOWERS.items()),
        "",
        "Refused, since their input is no single image of one shape: "
        + ", ".join(f"`{name}`" for name in OTHER_INPUTS)
        + ".",
        "",
        "Anything else: a function of your own that builds the network, [own_networks.md](own_networks.md).",
    ]
    return "\n".join(lines) + "\n"


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, 110, break_on_hyphens=False)


def _class(kind: str, row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"| {kind} | {row['example']} | refused: {row['refused']} | | | |"
    last = {True: "the same", False: "another"}.get(row.get("last"), "")  # type: ignore[call-overload]
    cells = (kind, row["example"], row["output"], row["prefix"] or "", row["layers"] or "", last)
    return "| " + " | ".join(map(str, cells)) + " |"


def _tower(name: str, tower: Tower) -> str:
    before = [f"{tower.prefix} before"] if tower.prefix else []
    after = [f"{tower.after} after"] if tower.after else []
    others = ", ".join(before + after)
    return f"| {name} | {tower.cls} | {others} | {tower.norm} |"


if __name__ == "__main__":
    print(document(), end="")
