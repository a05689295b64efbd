"""Which kind a folder is, which bands are read, in what unit, and what a transform of the user may do."""

import numpy as np
import pytest
from PIL import Image
from preprocessings import rgb

from dse_monitor import scenes
from dse_monitor.errors import ImagesError
from dse_monitor.evaluation import images
from dse_monitor.evaluation.geometry import fit_bands

pytestmark = pytest.mark.fast

COUNT = 9


@pytest.fixture
def write(tmp_path):
    """write(values of one file by its index, suffix) -> a folder of COUNT files."""

    def make(values, suffix=".npy", folder="files", count=COUNT):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for index in range(count):
            path = place / f"{index:02d}{suffix}"
            if suffix == ".npy":
                np.save(path, values(index))
            else:
                Image.fromarray(values(index)).save(path)
        return place

    return make


@pytest.fixture
def prepare(tmp_path):
    def make(folder, how=None, **changes):
        arguments = {"num_images": COUNT, "cache": tmp_path / "cache", "workers": 2} | changes
        return images.prepare(folder, how or rgb(32), **arguments)

    return make


def scene(index):
    return scenes.generate(index, 40)[0]


def bands(count, dtype=np.uint16, first=False, top=60_000):
    """bands(5)(index) -> values [H, W, 5] of a file."""

    def make(index):
        values = np.random.default_rng(index).integers(0, top, (40, 48, count)).astype(dtype)
        return np.ascontiguousarray(values.transpose(2, 0, 1)) if first else values

    return make


def test_eight_bit_arrays_are_the_pictures_they_would_be(write, prepare):
    pictures = prepare(write(scene, ".png", "pictures"))
    for name, layout in (("last", scene), ("first", lambda index: scene(index).transpose(2, 0, 1))):
        arrays = prepare(write(layout, folder=name))
        assert (arrays.pixels.dtype, arrays.scaling) == (np.uint8, "")
        by_name = {
            file.removesuffix(".npy"): row for file, row in zip(arrays.names, arrays.pixels, strict=True)
        }
        for file, row in zip(pictures.names, pictures.pixels, strict=True):
            np.testing.assert_array_equal(by_name[file.removesuffix(".png")], row)


@pytest.mark.parametrize(
    ("dtype", "scale", "unit", "words"),
    [
        (np.uint16, None, 65535, "uint16 / 65535"),
        (np.uint16, 10_000, 10_000, "uint16 / 10000"),
        (np.int32, 4096, 4096, "int32 / 4096"),
        (np.float32, None, 1, "float32 as it is"),
        (np.float64, 100, 100, "float64 / 100"),
        (np.uint8, 128, 128, "uint8 / 128"),
    ],
)
def test_values_come_to_the_unit_that_is_said(write, prepare, dtype, scale, unit, words):
    make = bands(5, dtype, top=200)
    result = prepare(write(make), rgb(40, resize=40, channels=5), scale=scale)
    assert (result.scaling, result.pixels.dtype) == (words, np.float32)
    assert any(words in note for note in result.notes)
    for name, row in zip(result.names, result.pixels, strict=True):
        middle = make(int(name[:2]))[:, 4:44].astype(np.float64)  # resized by nothing: 40 of 40 px
        np.testing.assert_allclose(row, middle / unit, rtol=1e-6)  # float32


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32])
def test_integers_of_no_usual_range_need_a_scale(write, prepare, dtype):
    with pytest.raises(ImagesError, match=rf"hold {np.dtype(dtype)}, of which no usual range.*--scale"):
        prepare(write(bands(3, dtype)))


def test_bands_are_counted_from_one_and_keep_their_order(write, prepare):
    folder = write(bands(13, first=True))
    every = prepare(folder, rgb(32, channels=13))
    chosen = prepare(folder, bands=(4, 3, 2))
    assert chosen.bands == (4, 3, 2)
    np.testing.assert_array_equal(chosen.pixels, every.pixels[..., [3, 2, 1]])
    assert prepare(folder, bands=(2, 3, 4)).fingerprint != chosen.fingerprint
    assert prepare(folder, bands=(4, 3, 2), scale=10_000).fingerprint != chosen.fingerprint
    assert prepare(folder, bands=(4, 3, 2)).fingerprint == chosen.fingerprint  # of the cache


@pytest.mark.parametrize(
    ("make", "suffix", "channels", "chosen", "message"),
    [
        (bands(13), ".npy", 3, None, r"network takes 3 channels, the files hold 13 bands; .*--bands"),
        (scene, ".png", 13, None, r"network takes 13 channels, the files hold 3 bands; .*--bands"),
        (bands(2), ".npy", 1, None, r"network takes 1 channel, the files hold 2 bands"),
        (bands(13), ".npy", 3, (12, 13, 14), r"band 14 was chosen with --bands, the files hold 13 bands"),
        (bands(13), ".npy", 3, (1, 2), r"2 bands were chosen \(1,2\), the network has 3 channels"),
    ],
)
def test_bands_that_are_not_the_networks_channels_are_refused(
    write, prepare, make, suffix, channels, chosen, message
):
    with pytest.raises(ImagesError, match=message):
        prepare(write(make, suffix), rgb(32, channels=channels), bands=chosen)


def test_a_network_of_one_channel_sees_pictures_in_grey(write, prepare):
    result = prepare(write(scene, ".png"), rgb(40, resize=40, channels=1))
    assert (result.pixels.shape, result.pixels.dtype) == ((COUNT, 40, 40, 1), np.uint8)
    assert any("greyscale" in note for note in result.notes)
    expected = np.asarray(Image.fromarray(scene(int(result.names[0][:2]))).convert("L"))
    np.testing.assert_array_equal(result.pixels[0, ..., 0], expected)


def test_a_network_of_one_channel_sees_deep_grey_without_loss(write, prepare):
    deep = prepare(write(lambda i: bands(1)(i)[..., 0], ".png"), rgb(40, resize=40, channels=1))
    assert (deep.scaling, deep.pixels.shape) == ("uint16 / 65535", (COUNT, 40, 40, 1))
    values = bands(1)(int(deep.names[0][:2]))[:, 4:44]
    np.testing.assert_array_equal(np.round(deep.pixels[0] * 65535), values)


def test_one_band_is_repeated_for_three_channels_and_said(write, prepare):
    result = prepare(write(lambda index: bands(1)(index)[..., 0]))
    assert result.pixels.shape == (COUNT, 32, 32, 3)
    assert (result.pixels == result.pixels[..., :1]).all()
    assert any("1 band, repeated for the network's 3 channels" in note for note in result.notes)


def test_deep_grey_pictures_keep_their_eight_bits_in_networks_of_three_channels(write, prepare):
    result = prepare(write(lambda index: bands(1)(index)[..., 0], ".png"))
    assert (result.pixels.dtype, result.scaling) == (np.uint8, "")


def test_a_file_that_differs_from_the_first_or_holds_nan_is_passed_over(write, prepare):
    folder = write(bands(5, np.float32), count=COUNT + 3)
    order = images.seeded_order([f"{index:02d}.npy" for index in range(COUNT + 3)], 0)
    first, nan, other, short = order[0], order[2], order[3], order[5]
    values = np.load(folder / nan)
    values[7, 8, 4] = np.nan
    np.save(folder / nan, values)
    np.save(folder / other, np.load(folder / other)[..., :4])
    (folder / short).write_bytes((folder / short).read_bytes()[:-1])
    result = prepare(folder, rgb(32, channels=5))
    reasons = {skip.name: skip.reason for skip in result.skipped}
    assert set(reasons) == {nan, other, short}
    assert result.names[0] == first
    assert reasons[nan] == "holds NaN or infinite pixels"
    assert "4 bands of float32 in [40, 48, 4], expected 5 bands" in reasons[other]
    assert "cut off" in reasons[short]


def test_nan_in_a_band_that_is_not_read_does_not_matter(write, prepare):
    def make(index):
        values = bands(5, np.float32)(index)
        values[0, 0, 4] = np.nan
        return values

    assert len(prepare(write(make), bands=(1, 2, 3))) == COUNT
    with pytest.raises(ImagesError, match="NaN"):
        prepare(write(make), bands=(1, 2, 5))


def test_values_beyond_float32_are_refused(write, prepare):
    with pytest.raises(ImagesError, match="beyond the range of float32"):
        prepare(write(lambda index: np.full((40, 48, 3), 1e300)))


def test_an_ambiguous_first_file_leaves_the_choice_to_the_next(write, prepare):
    folder = write(bands(3), count=COUNT + 1)
    first = images.seeded_order([f"{index:02d}.npy" for index in range(COUNT + 1)], 0)[0]
    np.save(folder / first, np.zeros((40, 40, 40), np.uint16))
    result = prepare(folder)
    assert [skip.name for skip in result.skipped] == [first]
    with pytest.raises(ImagesError, match=r"none of the 9 files looked at.*leaves open which axis"):
        prepare(write(lambda index: np.zeros((40, 40, 40), np.uint16), folder="all"))


def test_arrays_beside_pictures_are_left_out_and_said(write, prepare):
    folder = write(scene, ".png")
    alone = prepare(folder)
    write(bands(5))
    assert images.offered(folder) == ([f"{index:02d}.png" for index in range(COUNT)], COUNT)
    both = prepare(folder, cache=folder.parent / "other")
    assert (both.names, both.fingerprint) == (alone.names, alone.fingerprint)
    assert both.notes == ("9 arrays (.npy, .npz) beside the pictures were not read",)


def test_a_resized_band_stays_within_the_range_of_its_type():
    values = np.zeros((40, 40, 2), np.uint16)
    values[20:] = 65535
    fitted = fit_bands(values, rgb(24, resize=24, channels=2, interpolation="lanczos"))
    assert (fitted.min(), fitted.max()) == (0, 65535)
    free = fit_bands(values.astype(np.float32), rgb(24, resize=24, channels=2, interpolation="lanczos"))
    assert free.min() < 0  # the filter overshoots


def test_bands_are_resized_as_a_picture_of_floats_is():
    values = bands(4, np.float32)(0)
    fitted = fit_bands(values, rgb((20, 24), channels=4, crop_mode="squash", interpolation="bilinear"))
    for band in range(4):
        plane = Image.fromarray(np.ascontiguousarray(values[..., band]))
        expected = np.asarray(plane.resize((24, 20), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(fitted[..., band], expected)


# What a transform of the user's own may do.


def load(path):
    return np.asarray(Image.open(path), np.float32).transpose(2, 0, 1) / 255


def test_a_transform_is_all_that_happens(write, prepare):
    folder = write(scene, ".png")
    result = prepare(folder, transform=load, transform_id="abc")
    assert result.normalised
    assert (result.pixels.shape, result.size, result.scaling) == (
        (COUNT, 40, 40, 3),
        (40, 40),
        "by the transform",
    )
    expected = scene(int(result.names[0][:2])).astype(np.float32) / 255
    np.testing.assert_array_equal(result.pixels[0], expected)
    assert prepare(folder, transform=load, transform_id="abc").fingerprint == result.fingerprint
    other = prepare(folder, transform=lambda path: load(path) + 1, transform_id="def")
    assert other.fingerprint != result.fingerprint
    assert (other.pixels[0] > result.pixels[0]).all()


def test_a_transform_is_offered_every_file_or_those_it_names(write, prepare, tmp_path):
    folder = write(scene, ".png")
    for path in folder.iterdir():
        path.rename(path.with_suffix(".scan"))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").write_text("no image")

    class OfScans:
        suffixes = (".SCAN",)

        def __call__(self, path):
            return load(path)

    every = prepare(folder, transform=load, transform_id="abc", num_images=COUNT + 1)
    assert [skip.name for skip in every.skipped] == ["notes.txt"]
    named = prepare(folder, transform=OfScans(), transform_id="def", num_images=COUNT + 1)
    assert (named.skipped, named.found, len(named)) == ((), COUNT, COUNT)


def test_what_a_transform_raises_is_the_reason_with_its_place(write, prepare):
    def fails(path):
        raise TypeError("no such dtype")

    line = fails.__code__.co_firstlineno + 1
    with pytest.raises(ImagesError, match=rf"TypeError: no such dtype \(test_recipe\.py:{line}\)"):
        prepare(write(scene, ".png"), transform=fails, transform_id="abc")


@pytest.mark.parametrize(
    ("gives", "reason"),
    [
        (lambda path: np.zeros((40, 40), np.float32), r"gave float32 \[40, 40\], expected floating-point"),
        (lambda path: np.zeros((3, 40, 40), np.uint8), r"gave uint8 \[3, 40, 40\]"),
        (lambda path: None, r"gave object \[\]"),
        (lambda path: np.full((3, 40, 40), np.inf, np.float32), r"NaN or infinite"),
        (
            lambda path: np.zeros((40, 40, 3), np.float32),
            r"\[40, 40, 3\], expected \[C, H, W\] with .* 3 channels",
        ),
    ],
)
def test_what_a_transform_gives_must_be_an_image(write, prepare, gives, reason):
    with pytest.raises(ImagesError, match=reason):
        prepare(write(scene, ".png"), transform=gives, transform_id="abc")


def test_a_transform_whose_shape_varies_passes_files_over(write, prepare):
    def varies(path):
        image = load(path)
        return image[:, :20] if path.stem == "03" else image

    result = prepare(write(scene, ".png", count=COUNT + 1), transform=varies, transform_id="abc")
    assert result.pixels.shape[1:] == (40, 40, 3)
    wrong = [skip for skip in result.skipped if skip.name == "03.png"]
    assert all("[3, 20, 40], expected [3, 40, 40]" in skip.reason for skip in wrong)
    assert "03.png" not in result.names
