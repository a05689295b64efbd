"""The loop: exact resuming, accumulation, stopping, saving, logging, the DSE term."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dse_monitor.trainers.engine import saving
from dse_monitor.trainers.engine.trainer import Trainer, train
from dse_monitor.trainers.methods.dino import DINO, DINORecipe
from dse_monitor.trainers.settings import Settings, TrainingError

RECIPE = dataclasses.replace(
    DINORecipe.tiny(),
    image_size=32,
    local_size=16,
    batch_size=8,
    epochs=2,
    prototypes=32,
    head_hidden=16,
    head_bottleneck=8,
    drop_path=0.2,
)


def settings(out, **changes) -> Settings:
    return Settings(**{"data": "scenes", "out": out, "scenes": 24, "device": "cpu", "workers": 0, **changes})


def run(out, method=DINO, recipe=RECIPE, **changes) -> None:
    train("dino", method, recipe, settings(out, **changes))


def trainer(out, recipe=RECIPE, **changes) -> Trainer:
    return Trainer("dino", DINO, recipe, settings(out, **changes), torch.device("cpu"))


def equal(a, b) -> bool:
    """Equality of nested states, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs of three steps with the DSE term on, and its folder."""
    out = tmp_path_factory.mktemp("finished")
    run(out, dse_weight=1e-3, log_every=1)
    return out


def scalars(out) -> EventAccumulator:
    events = EventAccumulator(str(out))
    events.Reload()
    return events


@pytest.mark.parametrize("stop_after", [3, 4])  # between two epochs, and in the middle of one
def test_stopped_and_resumed_run_equals_the_uninterrupted_one(finished, tmp_path, stop_after):
    run(tmp_path, dse_weight=1e-3, max_steps=stop_after)
    run(tmp_path, dse_weight=1e-3, resume=True)
    whole, resumed = (saving.read(folder / "checkpoint_0002.pth") for folder in (finished, tmp_path))
    assert equal(whole, resumed)
    assert not (tmp_path / saving.LAST).exists()


def test_checkpoint_has_the_documented_keys(finished):
    content = saving.read(finished / "checkpoint_0001.pth")
    assert (content["format"], content["schema"], content["method"]) == ("dse-train", 1, "dino")
    assert (content["epoch"], content["step"]) == (1, 3)
    assert content["evaluated"] == "teacher.backbone."
    assert content["backbone"]["name"] == "vit_tiny_patch16_224"
    assert content["backbone"]["image_size"] == 32
    assert content["backbone"]["num_heads"] == 3
    assert content["images"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert any(key.startswith("teacher.backbone.blocks.0.") for key in content["model"])


def test_logs_hold_loss_schedules_dse_terms_and_epoch(finished):
    events = scalars(finished)
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/grad_norm", "train/images_per_second", "epoch"} <= tags
    assert {"train/dse", "train/dse_m_dim", "schedule/lr", "schedule/teacher_momentum"} <= tags
    assert [event.value for event in events.Scalars("epoch")] == pytest.approx([i / 3 for i in range(1, 7)])


def test_micro_batches_add_up_to_the_large_batch(tmp_path):
    recipe = dataclasses.replace(RECIPE, drop_path=0.0, freeze_last_layer=0)
    runs = [trainer(tmp_path / str(parts), recipe, accumulate=parts) for parts in (1, 4)]
    for one in runs:
        one._optimise(iter(one.loader), one._progress())
        one.report.close()
    large, small = (dict(one.method.student.named_parameters()) for one in runs)
    for name, parameter in large.items():
        if parameter.grad is not None:
            torch.testing.assert_close(small[name].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(runs[0].method.centre.value, runs[1].method.centre.value)


def test_new_run_refuses_a_folder_with_checkpoints(finished):
    with pytest.raises(TrainingError, match="--resume"):
        run(finished)


def test_resuming_with_another_recipe_names_what_changed(finished):
    with pytest.raises(TrainingError, match=r"lr 0\.012 -> 0\.005"):
        run(finished, recipe=dataclasses.replace(RECIPE, lr=0.005), resume=True, dse_weight=1e-3)


def test_a_folder_with_another_runs_checkpoints_is_never_written_over(finished, tmp_path):
    before = {path.name: path.read_bytes() for path in finished.glob("*.pth")}
    for changes in ({}, {"init_from": max(finished.glob("checkpoint_*.pth"))}):
        with pytest.raises(TrainingError, match="holds checkpoints of another run"):
            trainer(finished, RECIPE, **changes).run()
    assert {path.name: path.read_bytes() for path in finished.glob("*.pth")} == before


def test_init_from_takes_weights_and_starts_counting_anew(finished, tmp_path):
    source = finished / "checkpoint_0002.pth"
    started = trainer(tmp_path, dataclasses.replace(RECIPE, epochs=1), init_from=source)
    started.report.close()
    assert started.step == 0
    assert equal(saving.read(source)["model"], dict(started.method.state_dict()))


@pytest.fixture
def judged(finished):
    """The finished run as the watcher leaves it: its first checkpoint is the best that is left."""
    listing = finished / "dse" / "best.json"
    listing.parent.mkdir(exist_ok=True)
    listing.write_text(json.dumps({"surviving": {"file": "checkpoint_0001.pth"}}))
    yield finished
    listing.unlink()


def test_run_goes_on_from_the_best_checkpoint_of_another_with_the_term(judged, tmp_path):
    more = {"init_from": judged, "more_epochs": 2, "dse_from": "best", "dse_weight": 1e-3, "log_every": 1}
    run(tmp_path / "dse", **more)
    events = scalars(tmp_path / "dse")
    assert [event.step for event in events.Scalars("train/dse")] == [4, 5, 6, 7, 8, 9]
    rates = [event.value for event in events.Scalars("schedule/lr")]
    theirs = [event.value for event in scalars(judged).Scalars("schedule/lr")]
    assert rates == theirs[3:] + theirs[-1:] * 3  # beyond their end, schedules keep the last value
    content = saving.read(tmp_path / "dse" / "checkpoint_0003.pth")
    assert (content["epoch"], content["step"], content["first_step"]) == (3, 9, 3)


def test_such_a_run_resumes_to_the_same_end(judged, tmp_path):
    more = {"more_epochs": 1, "dse_from": "best", "dse_weight": 1e-3}
    run(tmp_path / "whole", init_from=judged, **more)
    run(tmp_path / "parts", init_from=judged, max_steps=4, **more)
    run(tmp_path / "parts", resume=True, **more)
    whole, parts = (saving.read(tmp_path / name / "checkpoint_0002.pth") for name in ("whole", "parts"))
    assert equal(whole, parts)


def test_going_on_from_an_unwatched_run_or_from_nothing_is_refused(finished, tmp_path):
    with pytest.raises(TrainingError, match=r"best\.json does not exist: score the run first"):
        run(tmp_path, init_from=finished, more_epochs=1)
    with pytest.raises(TrainingError, match="--dse-from best needs --init-from"):
        settings(tmp_path, dse_from="best")
    with pytest.raises(TrainingError, match="--more-epochs needs --init-from"):
        settings(tmp_path, more_epochs=1)


def test_dse_term_begins_at_its_epoch_and_skips_steps(tmp_path):
    run(tmp_path, dse_weight=1e-3, dse_from=1, dse_every=2, log_every=1)
    events = scalars(tmp_path)
    # steps are numbered from 0 and logged when done: 4 is the first even one of the second epoch
    assert [event.step for event in events.Scalars("train/dse")] == [5]


def test_too_few_images_and_odd_batches_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="do not fill one batch"):
        run(tmp_path, scenes=7)
    with pytest.raises(TrainingError, match="multiple"):
        run(tmp_path, accumulate=3)


def test_options_leave_the_numbers_alone(tmp_path):
    plain, other = trainer(tmp_path / "a"), trainer(tmp_path / "b", checkpointing=True, deterministic=True)
    torch.use_deterministic_algorithms(False)
    for one in (plain, other):
        torch.manual_seed(0)
        one.measured = one._optimise(iter(one.loader), one._progress())
        one.report.close()
    torch.testing.assert_close(plain.measured["loss"], other.measured["loss"])
    a, b = (dict(one.method.student.named_parameters()) for one in (plain, other))
    for name, parameter in a.items():
        torch.testing.assert_close(parameter, b[name], msg=name)


def test_bfloat16_keeps_the_objective_in_float32(tmp_path):
    half = trainer(tmp_path, precision="bfloat16")
    loss, _ = half._loss(half._received(next(iter(half.loader))), half._progress())
    half.report.close()
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_float16_step_is_skipped_when_its_gradient_overflows(tmp_path):
    half = trainer(tmp_path, precision="float16")
    half.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = {name: p.detach().clone() for name, p in half.method.student.named_parameters()}
    half._optimise(iter(half.loader), half._progress())
    assert half.scaler.get_scale() == 2.0**119
    assert all(torch.equal(p, before[name]) for name, p in half.method.student.named_parameters())
    half.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    half.step = 1  # lr is 0 at step 0
    half._optimise(iter(half.loader), half._progress())
    half.report.close()
    assert not all(torch.equal(p, before[name]) for name, p in half.method.student.named_parameters())
