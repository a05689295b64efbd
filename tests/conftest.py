"""What tests of several packages need, and the tiers (docs/contributing.md). Nothing here may load torch.

A file belongs to the fast tier when it says `pytestmark = pytest.mark.fast`. With `-m fast` no other test
file is even imported, since most of them load torch, and the session fails if one of the chosen loads it.
"""

import contextlib
import os
import sys
from pathlib import Path

import pytest

# Before torch is loaded anywhere: processes that test side by side share the cores instead of fighting.
os.environ.setdefault(
    "OMP_NUM_THREADS",
    str(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))),
)


def _only_fast(config):
    return config.option.markexpr == "fast"


def pytest_ignore_collect(collection_path, config):
    """With `-m fast`, leave files of other tiers unread."""
    path = Path(collection_path)
    if _only_fast(config) and path.suffix == ".py" and path.name.startswith("test_"):
        return "pytest.mark.fast" not in path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_modifyitems(config, items):
    """With `-m fast`, leave out what takes long in files of the fast tier."""
    if _only_fast(config):
        slow = [item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_sessionfinish(session):
    """Whoever loads torch in the fast tier makes it slow for everybody."""
    if _only_fast(session.config) and "torch" in sys.modules:
        raise pytest.UsageError("a test of the fast tier loaded torch into the process of the tests")


NETWORK = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 0}


@pytest.fixture(scope="session")
def write_checkpoint():
    """Writes a file as our trainers do: a ViT of 24 dimensions for images of 32 px, 16 tokens, 4 epochs old.

    Called with the path, a seed for the weights, and a function that spoils the network before it is saved.
    """

    import timm
    import torch

    def write(path, seed=0, change=None):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = timm.create_model("vit_tiny_patch16_224", **NETWORK)
        if change:
            with torch.no_grad():
                change(network)
        content = {
            "format": "dse-train",
            "schema": 1,
            "method": "dino",
            "epoch": 4,
            "step": 40,
            "backbone": {"name": "vit_tiny_patch16_224", "kwargs": NETWORK, "image_size": 32, "num_heads": 2},
            "evaluated": "teacher.backbone.",
            "model": {"teacher.backbone." + name: value for name, value in network.state_dict().items()},
            "optimizer": {},
            "scaler": {},
            "rng": {},
            "recipe": {},
        }
        torch.save(content, path)
        return path

    return write


@pytest.fixture
def fake_clock():
    from watch_fakes import FakeClock

    return FakeClock()


@pytest.fixture
def evaluation():
    """make_evaluation of tests/helpers/watch_fakes.py, which worker scripts import as well."""
    from watch_fakes import make_evaluation

    return make_evaluation


@pytest.fixture
def checkpoint():
    """write_checkpoint of tests/helpers/watch_fakes.py."""
    from watch_fakes import write_checkpoint

    return write_checkpoint


@pytest.fixture
def watching(fake_clock):
    """Makes monitors under the fake clock; ends them after the test."""
    from watch_fakes import Watching

    with contextlib.ExitStack() as stack:

        def make(*runs, **options):
            return stack.enter_context(Watching(fake_clock, *runs, **options))

        yield make
