"""Loader processes that die, and images that cannot be read, in runs of the engine."""

from __future__ import annotations

import os
import re
import signal

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dse_monitor.trainers.blocks.views import Crop, MultiCrop
from dse_monitor.trainers.engine import data, saving
from dse_monitor.trainers.engine.trainer import Trainer
from dse_monitor.trainers.method import Plan, collate
from dse_monitor.trainers.methods.dino import DINO
from dse_monitor.trainers.settings import Settings, TrainingError


def trained(recipe, out, killings: int, **changes) -> Trainer:
    """A run whose loader processes are killed in each of the first few steps."""

    class Killing(DINO):
        def before_step(self, progress) -> None:
            super().before_step(progress)
            if progress.step < killings:
                for process in trainer.loader.processes:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()

    values = {"data": "scenes", "scenes": 96, "device": "cpu", "workers": 2, "accumulate": 2, **changes}
    trainer = Trainer("dino", Killing, recipe, Settings(out=out, **values), torch.device("cpu"))
    try:
        trainer.run()
    finally:
        trainer.loader.close()
        trainer.report.close()
    return trainer


@pytest.mark.slow
def test_killed_loader_processes_are_replaced_and_change_nothing(small, difference, tmp_path, capfd):
    recipe = small("dino", epochs=1)
    heard = signal.getsignal(signal.SIGCHLD)
    trained(recipe, tmp_path / "calm", 0)
    trained(recipe, tmp_path / "struck", 2)
    calm, struck = (saving.read(tmp_path / name / "checkpoint_0001.pth") for name in ("calm", "struck"))
    assert difference(calm, struck) == ""
    assert re.search(r"warning   2 loader process\(es\) died \(signal 9\)", capfd.readouterr().out)
    assert signal.getsignal(signal.SIGCHLD) is heard


def load_with_processes_killed_after_each_batch(count: int) -> None:
    """An epoch of so many batches."""
    plan = Plan(epochs=1, steps_per_epoch=count, batch_size=2, images=2 * count)
    views = data.ViewsDataset(
        data.Scenes(2 * count, 32, 0), MultiCrop([Crop(size=16, scale=(0.5, 1.0))]), seed=1
    )
    order = data.Order(plan, seed=0)
    loader = data.Loader(views, order, data.Collator(collate, 1, 0), workers=1, pin=False, say=print)
    try:
        for _ in loader:
            for process in loader.processes:
                process.kill()
                process.join()
    finally:
        loader.close()


@pytest.mark.slow
def test_loader_that_keeps_dying_ends_in_one_line_with_advice(monkeypatch):
    monkeypatch.setattr(data, "MOST_LOSSES", 1)
    with pytest.raises(
        TrainingError, match=r"2 times in this epoch.*give fewer --workers; --resume"
    ) as raised:
        load_with_processes_killed_after_each_batch(40)
    assert "\n" not in str(raised.value)


@pytest.fixture
def pictures(tmp_path):
    """Ten images in two classes, two of them broken."""
    folder = tmp_path / "pictures"
    for i in range(10):
        path = folder / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (20 * i, 30, 40)).save(path)
    whole = (folder / "class1" / "3.jpg").read_bytes()
    (folder / "class1" / "3.jpg").write_bytes(whole[:200])
    (folder / "class0" / "4.jpg").write_bytes(b"no image")
    return folder


def test_broken_images_are_skipped_counted_and_listed_once(pictures, small, run, tmp_path, capfd):
    out, recipe = tmp_path / "run", small("dino", batch_size=5, epochs=3)
    run("dino", recipe, out, data=str(pictures), max_steps=4)
    run("dino", recipe, out, data=str(pictures), resume=True)
    listed = (out / "unreadable_images.txt").read_text().splitlines()
    assert sorted(os.path.basename(line.partition(":")[0]) for line in listed) == ["3.jpg", "4.jpg"]
    events = EventAccumulator(str(out)).Reload()
    assert events.Scalars("train/unreadable_images")[-1].value == 2
    assert capfd.readouterr().out.count("skipping an unreadable image") == 2  # once in each run
    assert saving.read(out / "checkpoint_0003.pth")["step"] == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_folder_of_broken_images_is_one_line(workers, pictures, small, run, tmp_path):
    for path in pictures.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(
        TrainingError, match=r"^10 images in a row cannot be read, the first is .*jpg"
    ) as raised:
        run("dino", small("dino", batch_size=5), tmp_path, data=str(pictures), workers=workers)
    assert "\n" not in str(raised.value)
