import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from preprocessings import rgb

from dse_monitor import scenes
from dse_monitor.errors import ImagesError, OutputError
from dse_monitor.evaluation import decoding, images

pytestmark = pytest.mark.fast


@pytest.fixture
def folder(tmp_path):
    """Twelve readable scenes in two levels."""
    root = tmp_path / "pictures"
    (root / "deep" / "er").mkdir(parents=True)
    for index in range(12):
        pixels, _ = scenes.generate(index, 40)
        place = root if index % 3 else root / "deep" / "er"
        Image.fromarray(pixels).save(place / f"scene{index}.png")
    return root


def prepare(folder, tmp_path, **changes):
    """With `size` and `resize` as sides of squares, unless `how` is given."""
    how = changes.pop("how", None) or rgb(changes.pop("size", 32), changes.pop("resize", None))
    arguments = {"num_images": 8, "cache": tmp_path / "cache", "workers": 2} | changes
    return images.prepare(folder, how, **arguments)


def test_pixels_names_and_counts_belong_together(folder, tmp_path):
    result = prepare(folder, tmp_path)
    assert result.pixels.shape == (8, 32, 32, 3)
    assert result.pixels.dtype == np.uint8
    assert (len(result), result.size, result.found, result.asked) == (8, (32, 32), 12, 8)
    assert (result.bands, result.scaling, result.normalised) == ((), "", False)
    assert result.skipped == ()
    assert result.notes == ()
    for name, pixels in zip(result.names, result.pixels, strict=True):
        np.testing.assert_array_equal(pixels, decoding.read_picture(folder / name, rgb(32, 37)))


def test_writing_to_pixels_leaves_the_cache_as_it_was(folder, tmp_path):
    first = prepare(folder, tmp_path)
    first.pixels[:] = 7
    assert prepare(folder, tmp_path).fingerprint == first.fingerprint
    assert (prepare(folder, tmp_path).pixels != 7).any()


def test_the_same_sample_comes_from_any_cache_and_any_number_of_threads(folder, tmp_path):
    first = prepare(folder, tmp_path)
    second = prepare(folder, tmp_path, cache=tmp_path / "other", workers=5)
    assert (first.names, first.fingerprint) == (second.names, second.fingerprint)


def test_another_seed_draws_another_order(folder, tmp_path):
    assert prepare(folder, tmp_path).names != prepare(folder, tmp_path, seed=1).names


@pytest.mark.parametrize("changes", [{"seed": 1}, {"size": 33}, {"resize": 40}, {"num_images": 9}])
def test_fingerprint_changes_with_what_changes_the_pixels(folder, tmp_path, changes):
    assert prepare(folder, tmp_path).fingerprint != prepare(folder, tmp_path, **changes).fingerprint


def test_fingerprint_changes_with_one_pixel(folder, tmp_path):
    before = prepare(folder, tmp_path)
    victim = folder / before.names[3]
    changed = np.asarray(Image.open(victim)).copy()
    changed[20, 20] ^= 255
    Image.fromarray(changed).save(victim)
    after = prepare(folder, tmp_path, cache=tmp_path / "other")
    assert after.names == before.names
    assert after.fingerprint != before.fingerprint


def test_growth_of_the_folder_does_not_change_the_sample(folder, tmp_path):
    before = prepare(folder, tmp_path)
    for index in range(40):
        Image.fromarray(scenes.generate(100 + index, 40)[0]).save(folder / f"late{index}.png")
    assert prepare(folder, tmp_path).names == before.names
    assert prepare(folder, tmp_path, size=24).names == before.names  # decoded anew, drawn once
    assert prepare(folder, tmp_path, cache=tmp_path / "new run").names != before.names


def test_cache_serves_without_the_folder(folder, tmp_path):
    before = prepare(folder, tmp_path)
    folder.rename(tmp_path / "moved away")
    after = prepare(folder, tmp_path)
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.pixels, before.pixels)


def test_missing_sampled_file_is_named_when_pixels_must_be_decoded(folder, tmp_path):
    gone = prepare(folder, tmp_path).names[2]
    (folder / gone).unlink()
    with pytest.raises(ImagesError, match=rf"{gone}.*fixed sample.*FileNotFoundError"):
        prepare(folder, tmp_path, size=24)


@pytest.mark.parametrize("damage", ["flip", "cut", "note", "delete"])
def test_damaged_cache_is_noticed_and_rebuilt(folder, tmp_path, damage):
    before = prepare(folder, tmp_path)
    pixels = before.pixels.copy()  # what is mapped changes with the file
    (file,) = (tmp_path / "cache").glob("*.rgb")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[5000] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-7])
    elif damage == "note":
        file.with_suffix(".json").write_text("[]")
    else:
        file.unlink()
    after = prepare(folder, tmp_path)
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.pixels, pixels)


def test_interrupted_build_leaves_nothing_that_looks_whole(folder, tmp_path):
    class Stop(Exception):
        pass

    def stop(done, wanted):
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        prepare(folder, tmp_path, progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(prepare(folder, tmp_path)) == 8


def test_leftovers_of_killed_processes_are_removed(folder, tmp_path):
    (tmp_path / "cache").mkdir()
    old, fresh = tmp_path / "cache" / "a.part", tmp_path / "cache" / "b.part"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (0, 0))
    prepare(folder, tmp_path)
    assert not old.exists()
    assert fresh.exists()


def test_progress_counts_to_the_number_wanted(folder, tmp_path):
    calls = []
    prepare(folder, tmp_path, progress=lambda done, wanted: calls.append((done, wanted)))
    assert calls == [(done, 8) for done in range(1, 9)]


def test_unusable_files_are_replaced_and_listed(folder, tmp_path):
    whole = (folder / "scene1.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (200, 9)).save(folder / "thin.png")
    result = prepare(folder, tmp_path, num_images=12)
    assert len(result) == 12
    assert {skip.name for skip in result.skipped} <= {"truncated.png", "text.jpg", "empty.png", "thin.png"}
    everything = prepare(folder, tmp_path, num_images=16)
    assert len(everything) == 12
    reasons = {skip.name: skip.reason for skip in everything.skipped}
    assert set(reasons) == {"truncated.png", "text.jpg", "empty.png", "thin.png"}
    assert "200 x 9 px" in reasons["thin.png"]
    assert str(folder) not in "".join(reasons.values())
    assert "12 usable images, 16 asked for" in everything.notes[0]
    assert "4 unusable" in everything.notes[1]
    assert (
        prepare(folder, tmp_path, num_images=16).skipped == everything.skipped
    )  # also when served from the cache


def test_too_few_images_is_an_error_that_counts_them(tmp_path):
    (tmp_path / "few").mkdir()
    for index in range(7):
        Image.new("L", (32, 32), index).save(tmp_path / "few" / f"{index}.png")
    (tmp_path / "few" / "bad.png").write_bytes(b"\x89PNG")
    with pytest.raises(ImagesError, match=r"7 usable images among 8 .* at least 8 are needed .*bad\.png"):
        prepare(tmp_path / "few", tmp_path)


def test_missing_folder_and_file_in_its_place_are_named(folder, tmp_path):
    with pytest.raises(ImagesError, match="nowhere: expected a folder of images, found nothing"):
        prepare(tmp_path / "nowhere", tmp_path)
    with pytest.raises(ImagesError, match="found a file"):
        prepare(folder / "scene1.png", tmp_path)


def test_unwritable_cache_is_an_output_error(folder, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        prepare(folder, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_images": 7},
        {"bands": (0, 1, 2)},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"transform": print},
        {"transform_id": "abc"},
        {"transform": print, "transform_id": "abc", "scale": 2.0},
    ],
)
def test_senseless_numbers_are_refused(folder, tmp_path, changes):
    with pytest.raises(ValueError, match=r"must|counted|not used"):
        prepare(folder, tmp_path, **changes)


def test_find_follows_links_once_and_skips_hidden_and_foreign_files(folder, tmp_path):
    (folder / "loop").symlink_to(folder)
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "broken.png").symlink_to("nothing.png")
    (folder / ".hidden.png").write_bytes((folder / "scene1.png").read_bytes())
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "a.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    (folder / "drawing.eps").write_text("a program, not pixels")
    os.mkfifo(folder / "pipe.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.JPEG").write_bytes(b"")
    (folder / "linked").symlink_to(elsewhere)
    expected = [f"scene{i}.png" if i % 3 else f"deep/er/scene{i}.png" for i in range(12)]
    assert images.offered(folder) == (sorted([*expected, "linked/linked.JPEG"]), 0)


def test_prepare_is_silent_about_odd_metadata(folder, tmp_path, recwarn):
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff"  # promises more entries than there are bytes
    Image.new("RGB", (32, 32)).save(folder / "odd.jpg", exif=exif)
    result = prepare(folder, tmp_path, num_images=13)
    assert "odd.jpg" in result.names
    assert not recwarn.list


def test_file_names_that_are_no_unicode_survive(folder, tmp_path):
    os.rename(os.fsencode(folder / "scene1.png"), os.fsencode(folder) + b"/sc\xe9ne.png")
    first = prepare(folder, tmp_path, num_images=12)
    again = prepare(folder, tmp_path, num_images=12)
    assert os.fsdecode(b"sc\xe9ne.png") in first.names
    assert first.names == again.names


def test_sample_list_is_plain_json(folder, tmp_path):
    result = prepare(folder, tmp_path)
    (file,) = (tmp_path / "cache").glob("sample-*.json")
    assert json.loads(file.read_text())["names"] == list(result.names)


def test_import_needs_no_torch():
    code = "import sys, dse_monitor.evaluation.images, dse_monitor.scenes; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
