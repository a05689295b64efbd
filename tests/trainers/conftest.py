"""Golden files and small runs for the trainers' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # small tensors: threads only get in each other's way


GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """golden("dino") -> the flat dictionary of tests/data/golden/dino.pt."""
    return lambda name: torch.load(GOLDEN / f"{name}.pt", weights_only=True)
