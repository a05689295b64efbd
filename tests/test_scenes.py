import json

import numpy as np
import pytest
from PIL import Image

from dse_monitor import scenes
from dse_monitor.errors import OutputError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("size", [16, 64, 97, 224])
def test_image_and_mask_have_the_size_asked_for(size):
    image, mask = scenes.generate(5, size, seed=2)
    assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((size, size), np.uint8)
    assert mask.max() < len(scenes.CLASSES)


def test_a_scene_is_a_function_of_index_and_seed():
    image, mask = scenes.generate(7, 64, seed=3)
    again, mask_again = scenes.generate(7, 64, seed=3)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    for other in (scenes.generate(8, 64, seed=3), scenes.generate(7, 64, seed=4)):
        assert (image != other[0]).any()


def test_global_random_state_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # pyright: ignore
    scenes.generate(0)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # pyright: ignore


def test_the_same_scene_at_another_size_is_only_another_resolution():
    for index in range(6):
        image, mask = scenes.generate(index, 64)
        large, large_mask = scenes.generate(index, 128)
        agreement = (large_mask[::2, ::2] == mask).mean()
        shrunk = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert agreement > 0.97  # rims differ
        assert np.corrcoef(shrunk.ravel(), image.ravel())[0, 1] > 0.9


def test_every_class_occurs_and_most_scenes_hold_several():
    masks = [scenes.generate(index, 32)[1] for index in range(200)]
    pixels = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=len(scenes.CLASSES))
    assert (pixels > 0.005 * pixels.sum()).all()
    classes = [len(np.unique(mask)) for mask in masks]
    assert np.mean(classes) > 3.5
    assert min(classes) >= 1


def test_neither_texture_nor_outline_alone_gives_the_class():
    textures, outlines = zip(*scenes.OBJECTS, strict=True)
    assert {textures.count(texture) for texture in textures} == {2}
    assert {outlines.count(outline) for outline in outlines} == {2}
    assert len(set(scenes.CLASSES)) == len(scenes.CLASSES) == 12


def test_colour_is_a_hint_and_no_answer():
    """The nearest mean colour, judged on the scenes it was fitted on, is a little better than chance."""
    pairs = [scenes.generate(index, 32) for index in range(150)]
    colours = np.concatenate([image.reshape(-1, 3) for image, _ in pairs]).astype(float)
    labels = np.concatenate([mask.ravel() for _, mask in pairs])
    means = np.stack([colours[labels == k].mean(0) for k in range(len(scenes.CLASSES))])
    guessed = ((colours[:, None] - means) ** 2).sum(2).argmin(1)
    recall = [(guessed[labels == k] == k).mean() for k in range(len(scenes.CLASSES))]
    assert 1.3 / len(scenes.CLASSES) < np.mean(recall) < 2.5 / len(scenes.CLASSES)


@pytest.mark.parametrize("arguments", [(-1, 64, 0), (0, 64, -1), (0, 15, 0)])
def test_senseless_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        scenes.generate(*arguments)


def test_folder_without_masks_is_flat(tmp_path):
    images = scenes.write_folder(tmp_path / "out", 3, size=32)
    assert images == tmp_path / "out"
    assert sorted(path.name for path in images.glob("*.png")) == ["000000.png", "000001.png", "000002.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(images / "000001.png")), scenes.generate(1, 32)[0])


def test_folder_with_masks_holds_pairs_whose_pixel_values_are_classes(tmp_path):
    images = scenes.write_folder(tmp_path, 2, size=32, seed=5, masks=True)
    assert images == tmp_path / "images"
    for index in range(2):
        image, mask = scenes.generate(index, 32, seed=5)
        with Image.open(images / f"{index:06d}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), image)
        with Image.open(tmp_path / "masks" / f"{index:06d}.png") as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.asarray(picture), mask)


def test_interrupted_folder_is_completed_and_what_is_there_is_kept(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, count):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        scenes.write_folder(tmp_path, 4, size=32, masks=True, progress=stop)
    kept = (tmp_path / "images" / "000001.png").stat().st_mtime_ns
    (tmp_path / "masks" / "000000.png").unlink()  # killed between an image and its mask
    calls = []
    scenes.write_folder(tmp_path, 4, size=32, masks=True, progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(list(tmp_path.glob("*/*.png"))) == 8
    assert (tmp_path / "images" / "000001.png").stat().st_mtime_ns == kept
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("changes", [{"size": 33}, {"seed": 1}, {"masks": True}])
def test_scenes_of_other_settings_are_not_mixed_into_a_folder(tmp_path, changes):
    scenes.write_folder(tmp_path, 1, size=32)
    with pytest.raises(OutputError, match=r"holds scenes made with .* choose another folder"):
        scenes.write_folder(tmp_path, 1, **({"size": 32} | changes))


def test_damaged_note_is_reported_not_overwritten(tmp_path):
    scenes.write_folder(tmp_path, 1, size=32)
    (tmp_path / "scenes.json").write_text("{")
    with pytest.raises(OutputError, match="choose another folder"):
        scenes.write_folder(tmp_path, 1, size=32)
    assert (tmp_path / "scenes.json").read_text() == "{"


def test_note_says_how_the_scenes_were_made(tmp_path):
    scenes.write_folder(tmp_path, 1, size=32, seed=9)
    note = json.loads((tmp_path / "scenes.json").read_text())
    assert (note["size"], note["seed"], note["masks"]) == (32, 9, False)


def test_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        scenes.write_folder(tmp_path / "file", 1)
