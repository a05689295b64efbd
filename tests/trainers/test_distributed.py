"""Two real gloo processes under torchrun against one process with the whole batch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dse_monitor.trainers.blocks.objectives import queue_contrast
from dse_monitor.trainers.engine import data, saving
from dse_monitor.trainers.method import Views
from dse_monitor.trainers.methods import load
from dse_monitor.trainers.methods.densecl import Projections, correspondence, dense_contrast

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # three interpreters load torch

SCRIPT = Path(__file__).with_name("two_processes.py")
# MAE and I-JEPA draw masks for each process, as their authors do: compared on masks that are shared out.
# SwAV's first gradient moves by a percent when pixels move by 1e-6: compared in float64. DenseCL normalises
# in each process, as its authors do: compared with that, and with running statistics.
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


def assert_close(halves, whole, rtol: float = 1e-3) -> None:
    """Two dictionaries of gradients (and what was measured), each entry relative to its norm."""
    assert whole.keys() == halves.keys()
    size = torch.stack([value.norm() for value in whole.values() if value.is_floating_point()]).norm()
    for key, value in whole.items():
        # float32 sums in another order; biases before a batch norm have no gradient but rounding
        assert (halves[key] - value).double().norm() <= rtol * value.double().norm() + 1e-5 * size, key


@pytest.mark.parametrize("name", EXACT)
def test_two_halves_of_a_batch_give_the_gradient_of_the_whole(name, alone, together, tmp_path):
    assert_close(together[0][name], alone.first_gradients(name, tmp_path))


@pytest.mark.parametrize("name", ["mae", "ijepa"])
def test_two_halves_of_a_batch_and_of_its_masks_give_the_gradient_of_the_whole(
    name, alone, together, tmp_path
):
    assert_close(together[0][f"given {name}"], alone.first_gradients_on_given_views(name, tmp_path))


def test_masks_are_drawn_for_each_process(alone, together, tmp_path):
    """The documented difference, without which the two methods would be among the exact ones."""
    _, batch = alone.given_views("ijepa", tmp_path)
    views = [Views([image]) for image in batch.views.images[0]]
    join, drawn = load("ijepa")(load("ijepa").recipe_type.tiny()).collator(), []
    for process in (0, 1):
        samples = [data.Sample(0, view, ()) for view in views[4 * process :][:4]]
        drawn.append(data.Collator(join, 0, process)(samples).views.extra)
    assert not torch.equal(*(extra["context_0"][:, :4] for extra in drawn))
    # sizes are the batch's: index lists of a block are equally long, but for what the shortest cuts
    assert drawn[0]["target_0"].shape == drawn[1]["target_0"].shape


def test_assignments_balance_over_both_processes(alone, together, tmp_path):
    with alone.in_float64():
        whole = alone.first_gradients_on_given_views("swav", tmp_path)
    assert whole["student.prototypes.weight"].dtype == torch.float64
    assert_close(together[0]["given swav"], whole, rtol=1e-6)


def test_densecl_is_exact_once_statistics_are_given(alone, together, tmp_path):
    """Loss, gradient, and both queues in the order of processes, though keys were shuffled on the way."""
    whole = alone.first_gradients_on_given_views("densecl", tmp_path, frozen_statistics=True)
    assert_close(together[0]["given densecl frozen"], whole)
    for queue in ("queue", "dense_queue"):
        pushed, expected = (
            found[f"after.{queue}.columns"][:, :8] for found in (together[0]["given densecl frozen"], whole)
        )
        torch.testing.assert_close(pushed, expected, rtol=1e-4, atol=1e-5)
        assert together[0]["given densecl frozen"][f"after.{queue}.pointer"].item() == 8


def densecl_by_hand(trainer, batch) -> dict[str, torch.Tensor]:
    """What two processes compute, in one: queries normalised by halves, keys by shuffled halves."""
    method, r = trainer.method, trainer.method.recipe
    queries, images = trainer._received(batch).images
    method.before_step(trainer._progress())
    torch.manual_seed(7)
    order = torch.randperm(8)
    first = {name: b.clone() for name, b in method.named_buffers()}
    with torch.no_grad():
        shares = [method.teacher(images[order[half]]) for half in (slice(0, 4), slice(4, 8))]
        keys = [torch.cat(parts)[order.argsort()] for parts in zip(*shares, strict=True)]
    losses = []
    for half in (slice(0, 4), slice(4, 8)):
        key = Projections(*(part[half] for part in keys))
        query = method.student(queries[half])
        matches = correspondence(query.features, key.features)
        image = queue_contrast(
            F.normalize(query.image), F.normalize(key.image), method.queue.columns, r.temperature
        )
        dense = dense_contrast(query.grid, key.grid, matches, method.dense_queue.columns, r.temperature)
        losses.append((image + dense) / 2)
        if half.start == 0:  # what the first process keeps and saves
            kept = {n: b.clone() for n, b in method.student.named_buffers()}
    loss = torch.stack(losses).mean()
    loss.backward()
    result = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
    result |= {f"after.student.{name}": value for name, value in kept.items()}
    columns = first["queue.columns"].clone()
    columns[:, :8] = F.normalize(keys[0]).T
    return {**result, "after.queue.columns": columns, "loss": loss.detach()}


def test_densecl_normalises_queries_by_process_and_keys_by_shuffled_process(alone, together, tmp_path):
    trainer, batch = alone.given_views("densecl", tmp_path / "hand")
    expected, halves = densecl_by_hand(trainer, batch), together[0]["given densecl"]
    assert_close({key: halves[key] for key in expected}, expected)
    assert trainer.method.recipe.dense_weight == 0.5
    whole = alone.first_gradients_on_given_views("densecl", tmp_path / "whole")
    with pytest.raises(AssertionError):  # statistics of four images are not those of eight
        assert_close(halves, whole, rtol=0.05)


def test_synchronised_batchnorm_equals_batchnorm_on_the_joined_rows(alone, together):
    whole, halves = alone.synchronised_norm(), together[0]["norm"]
    for key, value in whole.items():
        torch.testing.assert_close(
            halves[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_gathering_keeps_the_exact_gradient_under_averaging(alone, together):
    torch.testing.assert_close(together[0]["gathered"], alone.gathered_gradient())


def test_logged_values_are_means_over_processes(together):
    assert {name: value.item() for name, value in together[0]["means"].items()} == {"a": 5.0, "b": 1.5}


@pytest.mark.parametrize("name", ["dino", "swav", "densecl"])
def test_two_processes_resume_exactly(name, alone, together, difference):
    assert name in alone.RESUMED
    whole, parts = (
        saving.read(together[1] / "runs" / name / kind / "checkpoint_0002.pth") for kind in ("whole", "parts")
    )
    assert difference(whole, parts) == ""
    assert (parts["epoch"], parts["step"], len(parts["rng"])) == (2, 4, 2)
    first, second = parts["rng"]
    if name == "dino":
        assert not torch.equal(first["torch"], second["torch"])
        assert parts["regularizer"].tolist() == [[0, 8], [1, 8]]  # seeds and calls
    if name == "swav":
        assert not torch.equal(first["buffers"]["queue"], second["buffers"]["queue"])
