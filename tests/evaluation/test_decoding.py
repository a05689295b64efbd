import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from preprocessings import rgb
from torchvision.transforms import v2

from dse_monitor import scenes
from dse_monitor.errors import ImagesError
from dse_monitor.evaluation import decoding
from dse_monitor.evaluation.geometry import fit


def save_and_read(tmp_path, picture, name, **options):
    picture.save(tmp_path / name, **options)
    return decoding.read_picture(tmp_path / name, rgb(32, 32))


GREY_RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))


@pytest.mark.parametrize(
    ("picture", "name"),
    [
        (Image.fromarray(GREY_RAMP), "grey.png"),
        (Image.fromarray(GREY_RAMP).convert("LA"), "grey with alpha.png"),
        (Image.fromarray(GREY_RAMP).convert("P"), "palette.gif"),
        (Image.fromarray(GREY_RAMP.astype(np.uint16) * 257), "sixteen bits.png"),
        (Image.fromarray(GREY_RAMP.astype(np.uint16) * 257), "sixteen bits.tif"),
        (Image.fromarray(GREY_RAMP.astype(np.int32)), "thirty-two bits.tif"),
        (Image.fromarray(GREY_RAMP.astype(np.float32) / 255), "unit float.tif"),
        (Image.fromarray(GREY_RAMP.astype(np.float32)), "byte float.tif"),
        (Image.fromarray(GREY_RAMP).convert("RGB"), "true colour.bmp"),
        (Image.fromarray(GREY_RAMP).convert("RGB").convert("RGBA"), "opaque.webp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_mode_becomes_the_same_rgb(tmp_path, picture, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    result = save_and_read(tmp_path, picture, name, **options)
    np.testing.assert_array_equal(result, np.repeat(GREY_RAMP[..., None], 3, axis=2))


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    red = Image.new("RGB", (32, 32), (200, 30, 30))
    result = save_and_read(tmp_path, red.convert("CMYK"), "print.jpg", quality=95)
    assert np.abs(result.astype(int) - (200, 30, 30)).max() <= 4  # JPEG rounding


def test_transparent_pixels_become_mid_grey_whatever_colour_hides_below(tmp_path):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert (save_and_read(tmp_path, clear, "clear.png") == 128).all()
    palette = Image.new("P", (32, 32), 3)
    palette.putpalette([255, 0, 0] * 4)
    assert (
        save_and_read(tmp_path, palette, "clear palette.png", transparency=b"\xff\xff\xff\x00") == 128
    ).all()


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("black", "white")]
    result = save_and_read(tmp_path, frames[0], "film.gif", save_all=True, append_images=frames[1:])
    assert (result == 0).all()


def test_exif_orientation_turns_the_image(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways: shown after a quarter turn clockwise
    result = save_and_read(tmp_path, Image.fromarray(pixels), "turned.png", exif=exif)
    np.testing.assert_array_equal(result, np.rot90(pixels, -1))


def test_not_a_number_among_pixels_is_refused(tmp_path):
    with pytest.raises(ImagesError, match="NaN"):
        save_and_read(tmp_path, Image.fromarray(np.full((32, 32), np.nan, np.float32)), "nan.tif")


def test_decompression_bomb_is_refused_unopened(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(
        ">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0
    )  # 400 million RGB pixels in a hundred bytes
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(ImagesError, match="DecompressionBomb"):
        decoding.read_picture(tmp_path / "bomb.png", rgb(32, 32))


@pytest.mark.parametrize(("width", "height"), [(60, 45), (45, 60), (51, 51), (37, 90), (132, 33)])
def test_geometry_is_that_of_torchvision(tmp_path, width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "noise.png")
    expected = v2.CenterCrop(32)(v2.Resize(37, interpolation=v2.InterpolationMode.BICUBIC)(picture))
    result = decoding.read_picture(tmp_path / "noise.png", rgb(32, 37))
    np.testing.assert_array_equal(result, np.asarray(expected))


def test_of_a_long_strip_only_its_middle_is_resized(tmp_path, monkeypatch):
    pixels = np.zeros((32, 32 * 40, 3), np.uint8)
    pixels[:, 32 * 20 - 8 : 32 * 20 + 8] = 255
    Image.fromarray(pixels).save(tmp_path / "strip.png")
    widths = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, to, *rest, **how: widths.append(to[0]) or resize(self, to, *rest, **how),
    )
    result = decoding.read_picture(tmp_path / "strip.png", rgb(32, 32))
    assert widths == [32]
    expected = np.zeros((32, 32, 3), np.uint8)
    expected[:, 8:24] = 255
    np.testing.assert_array_equal(result, expected)


def test_reduced_jpeg_decoding_stays_close_to_the_full_one(tmp_path):
    pixels, _ = scenes.generate(3, 640)
    Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=95)
    full = v2.CenterCrop(32)(
        v2.Resize(37, interpolation=v2.InterpolationMode.BICUBIC)(Image.open(tmp_path / "large.jpg"))
    )
    difference = decoding.read_picture(tmp_path / "large.jpg", rgb(32, 37)).astype(int) - np.asarray(full)
    assert np.abs(difference).mean() < 2  # grey levels


@pytest.mark.parametrize("filter", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize(("width", "height"), [(60, 45), (45, 60), (20, 300), (300, 20)])
def test_squashed_pictures_are_resized_whole(tmp_path, filter, width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    how = rgb((24, 40), crop_mode="squash", interpolation=filter)
    expected = Image.fromarray(pixels).resize((40, 24), Image.Resampling[filter.upper()])
    np.testing.assert_array_equal(decoding.read_picture(tmp_path / "noise.png", how), np.asarray(expected))


@given(
    picture=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_a_centre_crop_of_any_ratio_covers_and_keeps_the_ratio(picture, size, more):
    """A gradient across, and one down, stay gradients of one slope whatever the sizes are."""
    width, height = picture
    resize = size[0] + more[0], size[1] + more[1]
    ramp = np.add.outer(np.arange(height) * 1.0, np.arange(width) * 1.0).astype(np.float32)
    fitted = np.asarray(fit(Image.fromarray(ramp), rgb(size, resize, interpolation="bilinear")))
    assert fitted.shape == size
    share = max(resize[0] / height, resize[1] / width)
    if share >= 1 and min(size) > 12:  # enlarged, so that rims are narrow
        middle = fitted[size[0] // 2 - 2 : size[0] // 2 + 3, size[1] // 2 - 2 : size[1] // 2 + 3]
        slopes = np.diff(middle, axis=0).mean(), np.diff(middle, axis=1).mean()
        np.testing.assert_allclose(slopes, 1 / share, rtol=0.12)  # int() of a side moves it by up to a pixel


def test_what_is_cut_out_of_a_picture_that_is_no_square_is_its_middle(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[24:40] = 255  # a bar across the middle
    Image.fromarray(pixels).save(tmp_path / "bar.png")
    how = rgb((16, 64), resize=(16, 64))
    assert (decoding.read_picture(tmp_path / "bar.png", how) == 255).all()
    assert (decoding.read_picture(tmp_path / "bar.png", rgb((64, 16), (64, 16)))[:20] == 0).all()
