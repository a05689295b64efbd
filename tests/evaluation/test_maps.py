import math

import numpy as np
import pytest
from PIL import Image

from dse_monitor.errors import OutputError
from dse_monitor.evaluation import maps

pytestmark = pytest.mark.fast


@pytest.fixture
def tokens():
    """Six images of 4 x 4 tokens: two regions each, and a little noise."""
    rng = np.random.default_rng(0)
    regions = rng.normal(size=(3, 24))
    labels = (np.arange(16) % 4 > 1)[None, :] + (np.arange(6) % 2)[:, None]
    return (regions[labels] + 0.1 * rng.normal(size=(6, 16, 24))).astype(np.float32)


def rotation(width, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def paint(folder, tokens, name, images="abc", grid=None):
    grid = grid or (math.isqrt(tokens.shape[1]),) * 2
    with Image.open(folder / maps.paint_tokens(folder, tokens, grid=grid, name=name, images=images)) as strip:
        return np.asarray(strip).astype(int)


def test_a_strip_holds_one_square_tile_per_image(tmp_path, tokens):
    strip = paint(tmp_path, tokens, "a")
    assert strip.shape == (4, 6 * 4, 3)
    scores = maps.principal_scores(tokens.reshape(96, -1))
    np.testing.assert_array_equal(strip[:, 8:12], maps.colours(scores).reshape(6, 4, 4, 3)[2])


def test_rotated_features_keep_their_colours(tmp_path, tokens):
    first = paint(tmp_path, tokens, "a")
    for seed in range(3):
        turned = paint(tmp_path, tokens @ rotation(24, seed) * 5 + 3, f"b{seed}")
        assert np.abs(turned - first).max() <= 1  # of 255: float32 rounding of the tokens


def test_swapped_and_mirrored_components_keep_their_colours(tmp_path):
    """Three directions of nearly equal spread change places between checkpoints; the colours must not."""
    scores = np.random.default_rng(0).normal(size=(96, 3))
    first = paint(tmp_path, (scores * (1.01, 1, 0.99)).reshape(6, 16, 3), "a")
    second = paint(tmp_path, (scores * (-0.99, 1, 1.01)).reshape(6, 16, 3), "b")
    assert np.abs(second - first).mean() < 4
    assert np.corrcoef(second.ravel(), first.ravel())[0, 1] > 0.99


def test_another_width_and_grid_are_painted_too(tmp_path, tokens):
    paint(tmp_path, tokens, "narrow")
    wider = np.concatenate(
        [tokens, np.zeros((6, 16, 200), np.float32)], axis=2
    )  # more dimensions than tokens
    np.testing.assert_allclose(paint(tmp_path, wider, "wide"), paint(tmp_path, tokens, "narrow"), atol=1)
    assert paint(tmp_path, tokens[:, :9], "coarse").shape == (3, 18, 3)
    assert len(list(tmp_path.glob("map-colours-*.npy"))) == 2


def test_collapse_to_one_direction_is_seen_as_one_hue(tmp_path, tokens):
    paint(tmp_path, tokens, "healthy")
    direction = np.random.default_rng(2).normal(size=24)
    collapsed = (tokens @ direction)[..., None] * direction
    colours = paint(tmp_path, collapsed, "collapsed").reshape(-1, 3) - 127.5
    offsets = np.log((colours + 127.5 + 1e-3) / (127.5 - colours + 1e-3))  # undo the colour curve
    singular = np.linalg.svd(offsets - offsets.mean(0), compute_uv=False)
    assert singular[1] < 0.05 * singular[0]


def test_clusters_are_rows_below_in_the_mean_colour_of_their_tokens(tmp_path, tokens):
    left = (np.arange(16) % 4 > 1).astype(int)
    labels = [np.arange(6)[:, None] * 2 + left, np.tile(left, (6, 1))]
    file = maps.paint_tokens(tmp_path, tokens, labels, grid=(4, 4), name="a", images="abc")
    with Image.open(tmp_path / file) as strip:
        assert strip.size == (24, 12)
        rows = np.asarray(strip).reshape(3, 4, 6, 4, 3).swapaxes(1, 2).reshape(3, 6, 16, 3)
    scores = maps.principal_scores(tokens.reshape(96, -1)).reshape(6, 16, 3)
    np.testing.assert_array_equal(rows[0], maps.colours(scores.reshape(96, 3)).reshape(6, 16, 3))
    for image in range(6):
        for part in (left == 0, left == 1):
            (colour,) = np.unique(rows[1, image, part], axis=0)
            np.testing.assert_array_equal(colour, maps.colours(scores[image, part].mean(0, keepdims=True))[0])
    assert len(np.unique(rows[2].reshape(-1, 3), axis=0)) == 2  # shared by the images


def test_clusters_keep_their_colours_when_features_turn_and_labels_change_places(tmp_path, tokens):
    labels = np.tile(np.arange(16) // 8, (6, 1))
    strips = []
    for name, features, own in (("a", tokens, labels), ("b", tokens @ rotation(24) * 3, 7 - labels)):
        file = maps.paint_tokens(tmp_path, features, [own], grid=(4, 4), name=name, images="abc")
        with Image.open(tmp_path / file) as strip:
            strips.append(np.asarray(strip).astype(int))
    assert np.abs(strips[0] - strips[1]).max() <= 1


def test_equal_numbers_of_two_batches_are_two_clusters(tokens):
    examples = maps.Examples()
    for part in (slice(0, 4), slice(4, 6)):
        examples.add(tokens[part], np.zeros((part.stop - part.start, 16), int))
    assert examples.missing == 0
    np.testing.assert_array_equal(examples.tokens(), tokens)
    (labels,) = examples.labels()
    assert labels[:, 0].tolist() == [0, 0, 0, 0, 1, 1]


def test_equal_tokens_are_mid_grey(tmp_path):
    assert (paint(tmp_path, np.ones((2, 4, 8), np.float32), "flat") == 128).all()


def test_features_of_one_or_two_dimensions_are_painted(tmp_path):
    tokens = np.random.default_rng(0).normal(size=(3, 4, 2))
    assert (paint(tmp_path, tokens, "plane")[..., 2] == 128).all()
    assert (maps.principal_scores(tokens.reshape(12, 2)[:, :1])[:, 1:] == 0).all()


def test_the_same_tokens_give_the_same_file(tmp_path, tokens):
    for folder in ("one", "two"):
        paint(tmp_path / folder, tokens, "a")
        paint(tmp_path / folder, tokens[:, ::-1], "b")
    for name in ("map-a.png", "map-b.png"):
        content = [(tmp_path / folder / "media" / name).read_bytes() for folder in ("one", "two")]
        assert content[0] == content[1]
    paint(tmp_path / "one", tokens, "a")  # the reference itself, painted again
    assert (tmp_path / "one" / "media" / "map-a.png").read_bytes() == (
        tmp_path / "two" / "media" / "map-a.png"
    ).read_bytes()


def test_other_images_get_a_reference_of_their_own(tmp_path, tokens):
    paint(tmp_path, tokens, "a", images="first")
    paint(tmp_path, tokens[:, ::-1], "b", images="second")
    paint(tmp_path / "fresh", tokens[:, ::-1], "b", images="second")
    assert (tmp_path / "media" / "map-b.png").read_bytes() == (
        tmp_path / "fresh" / "media" / "map-b.png"
    ).read_bytes()


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array", None])
def test_damaged_reference_is_replaced(tmp_path, tokens, damage):
    first = paint(tmp_path, tokens, "a")
    (reference,) = tmp_path.glob("map-colours-*.npy")
    if damage is None:
        np.save(reference, np.full((96, 3), np.nan))
    else:
        reference.write_bytes(damage)
    np.testing.assert_array_equal(paint(tmp_path, tokens, "a"), first)
    assert np.isfinite(np.load(reference)).all()


def test_reference_that_would_run_code_is_not_loaded(tmp_path, tokens):
    first = paint(tmp_path, tokens, "a")
    (reference,) = tmp_path.glob("map-colours-*.npy")
    np.save(reference, np.array([print], dtype=object), allow_pickle=True)
    np.testing.assert_array_equal(paint(tmp_path, tokens, "a"), first)


def test_tokens_that_are_no_square_grid_make_no_map(tmp_path):
    assert maps.paint_tokens(tmp_path, np.zeros((2, 5, 3)), grid=(4, 4), name="a", images="b") == ""
    assert not list(tmp_path.iterdir())


def test_names_cannot_leave_the_folder(tmp_path, tokens):
    file = maps.paint_tokens(tmp_path / "run", tokens, grid=(4, 4), name="../../evil", images="../x")
    assert (tmp_path / "run" / file).resolve().is_relative_to(tmp_path / "run" / "media")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_originals_are_tiles_in_the_order_of_the_maps(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 224, 224, 3), dtype=np.uint8)
    maps.paint_images(tmp_path, pixels)
    file = tmp_path / "media" / "images.webp"
    with Image.open(file) as strip:
        assert strip.size == (6 * 112, 112)
        tile = np.asarray(strip)[:, 112:224].astype(int)
    halved = pixels[1].reshape(112, 2, 112, 2, 3).mean((1, 3))
    assert abs(tile.mean() - halved.mean()) < 2  # noise is the worst a lossy format can be given
    stamp = file.stat().st_mtime_ns, file.stat().st_ino
    maps.paint_images(tmp_path, pixels)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == stamp
    maps.paint_images(tmp_path, 255 - pixels)
    assert file.stat().st_ino != stamp[1]


def test_folder_that_cannot_be_written_is_an_output_error(tmp_path, tokens):
    (tmp_path / "media").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        maps.paint_tokens(tmp_path, tokens, grid=(4, 4), name="a", images="b")
    with pytest.raises(OutputError, match="cannot be written"):
        maps.paint_images(tmp_path, np.zeros((1, 32, 32, 3), np.uint8))


def test_tokens_of_a_grid_that_is_no_square_are_painted_in_rows_and_columns(tmp_path, tokens):
    strip = paint(tmp_path, tokens, "a", grid=(2, 8))
    assert strip.shape == (2, 6 * 8, 3)
    scores = maps.principal_scores(tokens.reshape(96, -1))
    np.testing.assert_array_equal(strip[:, 8:16], maps.colours(scores).reshape(6, 2, 8, 3)[1])
    assert [path.name for path in tmp_path.glob("map-colours-*")] == ["map-colours-abc-6x2x8.npy"]


def test_originals_that_are_no_squares_keep_their_ratio(tmp_path):
    maps.paint_images(tmp_path, np.zeros((6, 32, 128, 3), np.uint8))
    with Image.open(tmp_path / "media" / "images.webp") as strip:
        assert strip.size == (6 * 112, 28)


def test_bands_are_stretched_from_their_second_to_their_ninety_eighth_percentile():
    pixels = np.random.default_rng(0).uniform(0, 1, (6, 40, 40, 3)).astype(np.float32)
    pixels[..., 1] = pixels[..., 1] * 0.01 + 5  # another unit
    pixels[0, 0, 0] = 1e6, -1e6, 1e6  # a broken pixel does not darken the rest
    shown = maps.previews(pixels)
    assert shown.shape == (6, 40, 40, 3)
    for band in range(3):
        low, high = np.percentile(pixels[..., band], (2, 98))
        expected = np.clip((pixels[..., band] - low) / (high - low), 0, 1) * 255
        assert np.abs(shown[..., band] - expected).max() <= 0.51
        assert ((shown[..., band] == 0).mean(), (shown[..., band] == 255).mean()) == pytest.approx(
            (0.02, 0.02), abs=0.004
        )


def test_one_band_is_grey_and_eight_bits_are_shown_as_they_are():
    rng = np.random.default_rng(0)
    eight = rng.integers(50, 60, (6, 40, 40, 1), dtype=np.uint8)
    np.testing.assert_array_equal(maps.previews(eight), np.repeat(eight, 3, axis=-1))
    deep = maps.previews(eight.astype(np.float32))
    assert (deep == deep[..., :1]).all()
    assert (deep.min(), deep.max()) == (0, 255)


def test_many_bands_show_their_principal_components_or_those_that_are_chosen():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(6, 40, 40, 3)) * (3, 2, 1)
    bands = (hidden @ rng.normal(size=(3, 13))).astype(np.float32)  # three directions in thirteen bands
    shown = maps.previews(bands)
    scores = maps.principal_scores(bands.reshape(-1, 13)).reshape(6, 40, 40, 3)
    for component in range(3):
        assert np.corrcoef(shown[..., component].ravel(), scores[..., component].ravel())[0, 1] > 0.98
    np.testing.assert_array_equal(maps.previews(bands, (4, 3, 2)), maps.previews(bands[..., [3, 2, 1]]))
    np.testing.assert_array_equal(maps.previews(bands, (4, 3, 14)), shown)  # there is no such band


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_equal_pixels_of_any_number_of_bands_are_shown(tmp_path, channels):
    maps.paint_images(tmp_path, np.full((6, 40, 40, channels), 0.25, np.float32))
    with Image.open(tmp_path / "media" / "images.webp") as strip:
        assert strip.size == (240, 40)
