"""Two real gloo processes under torchrun against one process with the whole batch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainers import saving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # three interpreters load torch

SCRIPT = Path(__file__).with_name("two_processes.py")
# The others differ, as their authors' code does: DenseCL normalises, MAE and I-JEPA draw masks per process.
# SwAV's first gradient moves by a percent when pixels move by 1e-6, which says nothing either way.
EXACT = (
    "mocov3",
    "byol",
    "simsiam",
    "dino",
    "esvit",
    "ibot",
    "mugs",
    "barlowtwins",
    "vicreg",
    "vicregl",
    "mec",
    "resa",
)


@pytest.fixture(scope="module")
def alone():
    """The script's functions, to be called in this single process."""
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes wrote, and the folder they wrote to."""
    out = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(SCRIPT), str(out), *EXACT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "written.pt", weights_only=True), out


@pytest.mark.parametrize("name", EXACT)
def test_two_halves_of_a_batch_give_the_gradient_of_the_whole(name, alone, together, tmp_path):
    whole, halves = alone.first_gradients(name, tmp_path), together[0][name]
    assert whole.keys() == halves.keys()
    size = torch.stack([value.norm() for value in whole.values()]).norm()
    for key, value in whole.items():
        # float32 sums in another order; biases before a batch norm have no gradient but rounding
        assert (halves[key] - value).norm() <= 1e-3 * value.norm() + 1e-5 * size, key


def test_synchronised_batchnorm_equals_batchnorm_on_the_joined_rows(alone, together):
    whole, halves = alone.synchronised_norm(), together[0]["norm"]
    for key, value in whole.items():
        torch.testing.assert_close(
            halves[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_gathering_keeps_the_exact_gradient_under_averaging(alone, together):
    torch.testing.assert_close(together[0]["gathered"], alone.gathered_gradient())


def test_two_processes_save_and_resume(together):
    content = saving.read(together[1] / "run" / "checkpoint_0002.pth")
    assert (content["epoch"], content["step"]) == (2, 4)
    assert len(content["rng"]) == 2
    assert not torch.equal(content["rng"][0]["torch"], content["rng"][1]["torch"])
