"""Where images come from, which form a step, and what a view depends on."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image

from dse_monitor.trainers.blocks.views import Crop, MultiCrop
from dse_monitor.trainers.engine import data
from dse_monitor.trainers.method import Plan, Views, collate
from dse_monitor.trainers.settings import TrainingError


def picture(path, colour=(200, 30, 40), size=(24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def keys(plan: Plan, accumulate: int = 1, **where) -> list[list[data.Key]]:
    return list(data.Order(dataclasses.replace(plan, accumulate=accumulate), seed=3, **where))


def test_folder_finds_nested_and_flat_images_and_nothing_else(tmp_path):
    for name in ("b.png", "a.JPG", "class/c.jpg", "class/deeper/d.webp"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    picture(tmp_path / ".hidden.png")
    folder = data.Folder(tmp_path)
    assert [folder.name(i)[len(str(tmp_path)) + 1 :] for i in range(len(folder))] == [
        "a.JPG",
        "b.png",
        "class/c.jpg",
        "class/deeper/d.webp",
    ]


def test_empty_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="holds no images"):
        data.Folder(tmp_path)
    with pytest.raises(TrainingError, match="no folder"):
        data.Folder(tmp_path / "nowhere")


def test_every_mode_becomes_rgb(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.new("CMYK", (8, 8)).save(tmp_path / "b.jpg")
    Image.new("RGBA", (8, 8)).save(tmp_path / "c.png")
    Image.new("L", (8, 8)).save(tmp_path / "d.png")
    folder = data.Folder(tmp_path)
    assert {folder.load(i).mode for i in range(4)} == {"RGB"}
    assert np.asarray(folder.load(0)).max() == 255
    assert 100 < np.asarray(folder.load(0)).mean() < 155


def test_unreadable_image_is_replaced_and_reported(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", (80 * i, 0, 0))
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    views = data.ViewsDataset(data.Folder(tmp_path), MultiCrop([Crop(size=16, scale=(0.5, 1.0))]), seed=0)
    sample = views[data.Key(0, 1, 7)]
    assert sample.views.images[0].shape == (3, 16, 16)
    assert len(sample.unreadable) == 1
    assert "1.png" in sample.unreadable[0]


def test_a_folder_of_broken_images_ends_in_an_error(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"nothing")
    views = data.ViewsDataset(data.Folder(tmp_path), MultiCrop([Crop(size=16, scale=(0.5, 1.0))]), seed=0)
    with pytest.raises(TrainingError, match="3 images in a row"):
        views[data.Key(0, 0, 0)]


def test_scenes_are_the_same_from_the_cache(tmp_path):
    scenes = data.Scenes(2, 32, 0)
    first, again = np.asarray(scenes.load(1)), np.asarray(scenes.load(1))
    assert (first == again).all()
    assert (first == np.asarray(data.Scenes(2, 32, 0).load(1))).all()


def test_an_epoch_visits_images_at_most_once_and_changes_order():
    plan = Plan(epochs=2, steps_per_epoch=3, batch_size=4, images=13)
    first, second = ([key.image for batch in keys(plan, epoch=e) for key in batch] for e in (0, 1))
    assert len(set(first)) == len(first) == 12
    assert first != second


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (2, 2)])
def test_a_step_holds_the_same_images_however_it_is_split(world, accumulate):
    plan = Plan(epochs=1, steps_per_epoch=3, batch_size=8, images=25)
    whole = [{key.image for key in batch} for batch in keys(plan)]
    split: list[set[int]] = [set() for _ in whole]
    for rank in range(world):
        part = Plan(1, 3, 8, 25, world_size=world, rank=rank)
        for i, batch in enumerate(keys(part, accumulate)):
            assert {key.micro_batch for key in batch} == {i}
            split[i // accumulate] |= {key.image for key in batch}
    assert split == whole


def test_order_goes_on_where_it_stopped():
    plan = Plan(epochs=2, steps_per_epoch=5, batch_size=2, images=10)
    assert keys(plan, epoch=1, first_step=3) == keys(plan, epoch=1)[3:]
    halves = dataclasses.replace(plan, accumulate=2)
    split = data.Order(halves, seed=3, epoch=1, first_step=3, given=1)
    assert list(split) == keys(plan, 2, epoch=1)[7:]
    assert len(split) == len(list(split)) == 3


def test_seeding_leaves_the_global_generators_alone():
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with data.seeded(1, 2, 3):
        drawn = torch.rand(1), random.random(), np.random.rand()
    with data.seeded(1, 2, 3):
        assert (torch.rand(1), random.random(), np.random.rand()) == drawn
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


def test_workers_do_not_change_what_is_seen():
    plan = Plan(epochs=1, steps_per_epoch=3, batch_size=2, images=6)
    views = data.ViewsDataset(data.Scenes(6, 32, 0), MultiCrop([Crop(size=16, scale=(0.3, 1.0))]), seed=1)
    seen = []
    for workers in (0, 2):
        order = data.Order(plan, seed=0)
        loader = data.Loader(views, order, data.Collator(collate, 1, 0), workers=workers, pin=False)
        seen.append([batch.views.images[0] for batch in loader])
        loader.close()
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_collation_is_seeded_by_the_micro_batch():
    def draw(samples, step):
        return Views([torch.rand(1)], {"step": torch.tensor(step)})

    def collated(seed: int, micro_batch: int, rank: int) -> float:
        sample = data.Sample(micro_batch, Views([]), ())
        return data.Collator(draw, seed, rank)([sample]).views.images[0].item()

    assert collated(0, 4, 0) == collated(0, 4, 0)
    assert len({collated(0, 4, 0), collated(1, 4, 0), collated(0, 5, 0), collated(0, 4, 1)}) == 4


def test_links_back_up_are_followed_once(tmp_path):
    picture(tmp_path / "a" / "one.png")
    for name in ("up", "again"):
        (tmp_path / "a" / name).symlink_to(tmp_path, target_is_directory=True)
    elsewhere = tmp_path.parent / f"{tmp_path.name} elsewhere"
    picture(elsewhere / "two.png")
    (tmp_path / "b").symlink_to(elsewhere, target_is_directory=True)
    source = data.Folder(tmp_path)
    assert [path.removeprefix(f"{tmp_path}/") for path in source.paths] == ["a/one.png", "b/two.png"]
