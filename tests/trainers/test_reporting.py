"""What a run leaves behind for people: scalars, a bar, lines, and only the checkpoints asked for."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dse_monitor.trainers.engine import saving
from dse_monitor.trainers.engine.reporting import Means, Report


@pytest.fixture
def logged(small, run, tmp_path):
    """logged("dino", **settings) -> {tag: [values]} of a run of four steps, every one logged."""

    def scalars(name, **changes) -> dict[str, list[float]]:
        run(name, small(name), tmp_path, **changes)
        events = EventAccumulator(str(tmp_path)).Reload()
        return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return scalars


def test_schedules_of_a_distillation_are_logged_step_by_step(logged):
    found = logged("dino")
    wanted = ("lr", "weight_decay", "teacher_momentum", "teacher_temperature")
    assert {f"schedule/{name}" for name in wanted} <= found.keys()
    assert all(len(found[f"schedule/{name}"]) == 4 for name in wanted)
    assert found["schedule/teacher_momentum"] == sorted(found["schedule/teacher_momentum"])
    assert found["epoch"] == [0.5, 1.0, 1.5, 2.0]


def test_parts_of_a_loss_norm_speed_and_memory_are_logged(logged):
    found = logged("densecl")
    parts = zip(found["train/image_loss"], found["train/dense_loss"], strict=True)
    assert found["train/loss"] == pytest.approx([(a + b) / 2 for a, b in parts], rel=1e-5)
    for name in ("grad_norm", "images_per_second", "memory_gb"):
        assert len(found[f"train/{name}"]) == 4
        assert all(value > 0 for value in found[f"train/{name}"])
    assert 0.05 < found["train/memory_gb"][-1] < 100  # this process's peak


def test_entry_is_the_mean_since_the_one_before(small, run, tmp_path):
    found = []
    for every in (1, 2):
        out = tmp_path / str(every)
        run("dino", small("dino", epochs=1), out, log_every=every)
        found.append([event.value for event in EventAccumulator(str(out)).Reload().Scalars("train/loss")])
    assert found[1] == pytest.approx([sum(found[0]) / 2], rel=1e-5)


def test_resumed_run_hides_what_a_dead_one_logged_beyond_its_checkpoint(small, run, tmp_path):
    recipe = small("dino")
    run("dino", recipe, tmp_path)
    (tmp_path / "checkpoint_0002.pth").unlink()
    run("dino", recipe, tmp_path, resume=True)
    steps = [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"keep": 2}, [4, 5]),
        ({"save_every": 2}, [2, 4, 5]),  # the last epoch is always kept
        ({"save_every": 2, "keep": 1}, [5]),
    ],
)
def test_checkpoints_are_saved_and_rotated_as_asked(options, kept, small, run, tmp_path):
    run("simsiam", small("simsiam", epochs=5), tmp_path, scenes=8, **options)
    assert [int(path.stem[-4:]) for path in saving.numbered(tmp_path)] == kept
    assert not list(tmp_path.glob(".*"))


def test_terminal_gets_a_bar_that_leaves_one_line(tmp_path):
    report = Report(tmp_path, 0, silent=False)
    screen = report.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    report.begin_epoch("epoch 1/2", 10, 0)
    for step in range(1, 4):
        report.advance({"loss": torch.tensor(float(step))})
    report.log(3, {"train/loss": 2.5, "train/dse": -0.25, "train/images_per_second": 12.0})
    report.say("a line above the bar")
    assert report._bar is not None
    report._bar.refresh()
    drawn = screen.file.getvalue()
    for part in ("epoch 1/2", "3/10", "loss 2.5000", "DSE -0.2500", "12 images/s", "a line above the bar"):
        assert part in drawn
    report.end_epoch("epoch 1/2", 24)
    report.close()
    assert report._bar is None
    assert "epoch 1/2  loss 2.0000" in screen.file.getvalue()  # the mean of the whole epoch


def test_silent_process_writes_and_prints_nothing(tmp_path, capfd):
    report = Report(tmp_path, 0, silent=True)
    report.begin_epoch("epoch 1/1", 1, 0)
    report.advance({"loss": torch.tensor(1.0)})
    report.log(1, {"train/loss": 1.0})
    report.end_epoch("epoch 1/1", 8)
    report.close()
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_brackets_and_undecodable_names_are_said_as_they_are(tmp_path, capsys):
    report = Report(tmp_path, 0, silent=False)
    report.say("output x[/y]z [run] bad\udcff.jpg")
    report.close()
    assert capsys.readouterr().out == "output x[/y]z [run] bad\\udcff.jpg\n"


def test_means_count_each_name_by_itself():
    means = Means()
    means.add({"loss": torch.tensor(1.0), "dse": torch.tensor(5.0)})
    means.add({"loss": torch.tensor(3.0)})
    assert {name: value.item() for name, value in means.take().items()} == {"loss": 2.0, "dse": 5.0}
    assert means.take() == {}
