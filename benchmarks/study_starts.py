"""Starts of known height for the study: a trainer's first checkpoint with a network taught by labels in it.

Self-supervision on so few scenes hardly leaves the level of random weights, so its runs have little to lose.
A run that starts from a network trained on the masks of its scenes begins near the top of what the network
can reach and shows whether DSE sees what happens to that. Heads, predictors, queues and centres are as the
trainer drew them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.study_bounds import fit, settle, training_scenes
from dse_monitor.trainers import backbones

EPOCHS, SEED = 48, 0  # of the training with labels; the epochs are those of the ceiling
ENCODERS = ("student.backbone.", "teacher.backbone.")


def write(fresh: Path, target: Path, count: int, size: int, epochs: int = EPOCHS) -> None:
    """Teach the network of a trainer's checkpoint and write the checkpoint again, at epoch 0.

    Networks alike in everything but their method are taught once and kept beside ``target``.

    Args:
        fresh: a checkpoint of the trainers.
        target: the same with taught weights in student and teacher.
        count: scenes to learn from, with their masks: those of the study.
        size: of them, px.
        epochs: of the training with labels.

    Raises:
        ValueError: the checkpoint holds no encoder of its network.
    """
    content: dict[str, Any] = torch.load(fresh, weights_only=True)
    model, fixed = _network(content)
    facts = json.dumps([content["backbone"], fixed, epochs, count, size], sort_keys=True)
    kept = target.parent / f"network-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.pt"
    if not kept.exists():
        train = training_scenes(count, size)
        torch.manual_seed(SEED)
        settle(model, train.images)
        fit(model, train, epochs, SEED)
        _replace(kept, model.state_dict())
    taught = torch.load(kept, weights_only=True)
    prefixes = [prefix for prefix in ENCODERS if all(prefix + key in content["model"] for key in taught)]
    if ENCODERS[0] not in prefixes:
        raise ValueError(f"{fresh}: no encoder under {ENCODERS[0]!r} with the keys of {content['backbone']}")
    for prefix in prefixes:
        content["model"].update({prefix + key: value for key, value in taught.items()})
    _replace(target, content | {"epoch": 0, "step": 0})


def _network(content: dict[str, Any]) -> tuple[nn.Module, str]:
    """The student's network with its weights, and the order of its position table if that is fixed."""
    described = content["backbone"]
    spec = backbones.Backbone(**described, family=_family(described["name"]))
    model = backbones.build(spec)
    weights = content["model"]
    model.load_state_dict({key: weights[ENCODERS[0] + key] for key in model.state_dict()})
    positions = getattr(model, "pos_embed", None)
    if positions is None:
        return model, ""
    prefix = model.num_prefix_tokens
    grid = round((positions.shape[1] - prefix) ** 0.5)
    for order, rows_first in (("columns first", False), ("rows first", True)):
        table = backbones.sincos_positions(positions.shape[2], grid, cls=bool(prefix), rows_first=rows_first)
        if torch.allclose(positions, table.reshape(positions.shape), atol=1e-6):
            positions.requires_grad_(False)
            return model, order
    return model, ""


def _family(name: str) -> str:
    return next((family for family in ("vit", "swin") if name.startswith(family)), "conv")


def _replace(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(f"{path.suffix}.part")
    torch.save(content, part)
    part.replace(path)
