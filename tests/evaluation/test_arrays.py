"""Files of bands: axes, types and headers that promise what is not there."""

import io
import struct
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dse_monitor.errors import ImagesError
from dse_monitor.evaluation import arrays
from dse_monitor.evaluation.arrays import FIRST, LAST, band_axis, open_bands, read_bands

pytestmark = pytest.mark.fast

BANDS = np.random.default_rng(0).integers(0, 5000, (40, 30, 5), dtype=np.uint16)  # [H, W, C]


def saved(tmp_path, values, name="a.npy"):
    np.save(tmp_path / name, values)
    return tmp_path / name


def header(shape, descr="'<f4'", version=(1, 0), fortran=False, text=None):
    """The beginning of an .npy file as it could have been written by anybody."""
    text = text or f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


@given(
    sides=st.tuples(st.integers(17, 64), st.integers(17, 64)),
    count=st.integers(1, 16),
    first=st.booleans(),
)
def test_bands_are_along_the_axis_that_is_shorter_than_both_others(sides, count, first):
    shape = (count, *sides) if first else (*sides, count)
    assert band_axis(shape) == (FIRST if first else LAST)


@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 16, 32), (16, 16, 32), (16, 32, 16), (64, 32, 40)])
def test_a_shape_that_leaves_the_axis_open_is_refused_with_what_to_do(shape):
    with pytest.raises(ImagesError, match=r"leaves open which axis holds the bands.*save it as TIFF"):
        band_axis(shape)


@pytest.mark.parametrize("kind", ["last", "first", "fortran", "big endian", "npz", "compressed"])
def test_every_layout_gives_the_same_bands(tmp_path, kind):
    values, axis, path = BANDS, LAST, tmp_path / "a.npy"
    if kind == "first":
        values, axis = np.ascontiguousarray(BANDS.transpose(2, 0, 1)), FIRST
    elif kind == "fortran":
        values = np.asfortranarray(BANDS)
    elif kind == "big endian":
        values = BANDS.astype(">u2")
    if kind in ("npz", "compressed"):
        path = tmp_path / "a.npz"
        (np.savez if kind == "npz" else np.savez_compressed)(path, values)
    else:
        np.save(path, values)
    opened = open_bands(path)
    assert (opened.dtype.name, opened.axis) == ("uint16", None)
    assert band_axis(opened.shape) == axis
    np.testing.assert_array_equal(read_bands(path, axis, 5, "uint16"), BANDS)
    np.testing.assert_array_equal(read_bands(path, axis, 5, "uint16", [3, 0]), BANDS[..., [3, 0]])


def test_an_array_without_bands_is_one_band(tmp_path):
    path = saved(tmp_path, BANDS[..., 0])
    np.testing.assert_array_equal(read_bands(path, LAST, 1, "uint16"), BANDS[..., :1])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (BANDS[..., :4], r"4 bands of uint16 in \[40, 30, 4\], expected 5 bands of uint16"),
        (BANDS.transpose(2, 0, 1), r"30 bands of uint16 in \[5, 40, 30\]"),
        (BANDS.astype(np.float32), r"5 bands of float32 in .*expected 5 bands of uint16"),
        (BANDS[..., 0], r"1 band of uint16 in \[40, 30\]"),
    ],
)
def test_a_file_that_differs_from_the_first_says_how(tmp_path, values, found):
    with pytest.raises(ImagesError, match=found):
        read_bands(saved(tmp_path, values), LAST, 5, "uint16")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header((10**9, 10**9)), r"at most 89,478,485 pixels"),
        (header((2**62, 2**62, 3)), r"at most 89,478,485 pixels"),
        (header((9000, 9000, 12)), r"and 357,913,940 values are read"),
        (
            header((100, 100)) + bytes(39_999),
            r"is cut off: \[100, 100\] of float32 takes 40,000 bytes, .* 39,999",
        ),
        (header((100, 100)), r"is cut off: .* it holds 0"),
        (header((0, 100)), r"holds no pixels"),
        (header((-5, 100)), r"holds no pixels"),
        (header((100, 15)) + bytes(6000), r"the shorter side must have 16"),
        (header((3, 15, 100)) + bytes(18_000), r"the shorter side must have 16"),
        (header((100,)), r"expected \[H, W\], \[H, W, C\] or \[C, H, W\]"),
        (header((2, 3, 100, 100)), r"an array \[2, 3, 100, 100\], expected"),
        (header((64, 64), "'|O'") + b"cbuiltins\nprint\n.", r"Python objects, which are not loaded"),
        (header((64, 64), "'<c8'"), r"values of type complex64, expected whole or floating-point"),
        (header((64, 64), "[('a', '<f4'), ('b', '<f4')]"), r"holds values of type"),
        (header((64, 64), "'<M8[s]'"), r"holds values of type"),
        (header((64, 64), version=(3, 0)), r"of version 3\.0 of \.npy"),
        (header((64, 64), text="__import__('os').system('true')"), r"cannot be decoded \(ValueError"),
        (header("10**999"), r"cannot be decoded"),
        (b"\x93NUMPY\x01", r"cannot be decoded"),
        (b"", r"cannot be decoded"),
        (b"PK\x03\x04", r"cannot be decoded"),
    ],
)
def test_a_header_that_promises_what_is_not_there_is_refused_before_anything_is_allocated(
    tmp_path, content, reason
):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ImagesError, match=reason) as refused:
        open_bands(tmp_path / "a.npy")
    assert str(tmp_path) not in str(refused.value)


def test_a_mapped_array_is_not_read_whole(tmp_path):
    values = open_bands(saved(tmp_path, BANDS)).load(LAST, None)
    base = values
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_an_npz_of_several_arrays_names_them(tmp_path):
    np.savez(tmp_path / "a.npz", image=BANDS, mask=BANDS[..., 0])
    with pytest.raises(ImagesError, match=r"holds 2 arrays \(image, mask\), expected one"):
        open_bands(tmp_path / "a.npz")


def test_an_npz_that_ends_early_or_holds_objects_is_refused(tmp_path):
    for content, reason in (
        (header((64, 64)) + bytes(100), r"is cut off"),
        (header((64, 64), "'|O'"), r"Python objects"),
        (header((10**6, 10**6)), r"at most"),
    ):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("a.npy", content)
        with pytest.raises(ImagesError, match=reason):
            read_bands(tmp_path / "a.npz", LAST, 1, "float32")
    stream = io.BytesIO()
    np.savez_compressed(stream, BANDS)
    (tmp_path / "a.npz").write_bytes(stream.getvalue()[:-30])
    with pytest.raises(ImagesError, match="cannot be decoded"):
        open_bands(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("picture", "name", "expected"),
    [
        (Image.fromarray(BANDS[..., 0]), "a.png", BANDS[..., :1]),
        (Image.fromarray((BANDS[..., :4] % 256).astype(np.uint8)), "a.png", BANDS[..., :4] % 256),
        (Image.fromarray((BANDS[..., :3] % 256).astype(np.uint8)), "a.bmp", BANDS[..., :3] % 256),
        (Image.fromarray(BANDS[..., 0] > 2500), "a.png", BANDS[..., :1] > 2500),
    ],
)
def test_a_picture_read_as_bands_keeps_its_values(tmp_path, picture, name, expected):
    picture.save(tmp_path / name)
    opened = open_bands(tmp_path / name)
    found = opened.load(LAST, None)
    assert opened.dtype.name == found.dtype.name
    np.testing.assert_array_equal(found, expected)


def test_a_picture_read_as_bands_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(BANDS[..., 0]).save(tmp_path / "a.png", exif=exif)
    opened = open_bands(tmp_path / "a.png")
    assert opened.shape == (30, 40)
    np.testing.assert_array_equal(opened.load(LAST, None)[..., 0], np.rot90(BANDS[..., 0], -1))


@pytest.fixture
def no_readers(monkeypatch):
    """Neither tifffile nor rasterio."""
    for name in ("tifffile", "rasterio"):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_tifffile_pillow_reads_what_it_knows(tmp_path, no_readers):
    Image.fromarray(BANDS[..., 0]).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_bands(tmp_path / "a.tif", LAST, 1, "uint16"), BANDS[..., :1])


def test_without_tifffile_the_reason_says_what_to_install(tmp_path, no_readers):
    pages = [Image.fromarray(BANDS[..., band]) for band in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "odd.tif").write_bytes(b"II*\x00\x08\x00\x00\x00\x00\x00")
    for name in ("pages.tif", "odd.tif"):
        with pytest.raises(ImagesError, match=r"pip install tifffile"):
            open_bands(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_pillows(tmp_path, orientation):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(arrays.pillow.upright(image))
    np.testing.assert_array_equal(arrays._upright(values[..., None], orientation)[..., 0], expected)


@pytest.mark.parametrize(
    ("axes", "shape", "axis"),
    [("YX", (9, 9), FIRST), ("SYX", (4, 9, 9), FIRST), ("YXS", (9, 9, 4), LAST), ("QYX", (4, 9, 9), FIRST)],
)
def test_axes_of_a_tiff_say_where_bands_are(axes, shape, axis):
    assert arrays._tiff_axis(axes, shape) == axis


@pytest.mark.parametrize("axes", ["ZYX", "TYX", "CZYX", "QQYX", "XY"])
def test_a_tiff_of_several_images_is_refused(axes):
    with pytest.raises(ImagesError, match=rf"along the axes {axes} .* save each image as a file of its own"):
        arrays._tiff_axis(axes, (5,) * len(axes))
