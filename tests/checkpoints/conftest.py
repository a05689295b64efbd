"""Checkpoints of any layout, written small, and the encoders read back from them."""

import pytest
import torch

from dse_monitor.checkpoints import load_encoder


@pytest.fixture
def saved(tmp_path):
    """Writes an object with torch.save under a name below a folder of its own; returns the path."""

    def save(content, name="model.pth"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        return path

    return save


@pytest.fixture
def reloaded(saved):
    """The encoder of a state dict, through a file; options go to load_encoder."""

    def load(state, **options):
        return load_encoder(saved(state), **options)

    return load
