"""TIFF as tifffile and rasterio write it: bands, planes, pages, compressions, and who reads what."""

import sys

import numpy as np
import pytest
from preprocessings import rgb

from dse_monitor.errors import ImagesError
from dse_monitor.evaluation import images
from dse_monitor.evaluation.arrays import FIRST, LAST, open_bands, read_bands

pytestmark = [
    pytest.mark.slow,  # needs packages that the tests do not install
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # rasterio's own use of affine
    pytest.mark.filterwarnings(
        "ignore::UserWarning"
    ),  # of TIFF without a place on earth; silent in `prepare`
]

CUBE = np.random.default_rng(0).integers(0, 10_000, (13, 48, 40), dtype=np.uint16)  # [C, H, W]


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


@pytest.fixture
def rasterio():
    return pytest.importorskip("rasterio")


def geotiff(rasterio, path, values, **options):
    count, height, width = values.shape
    transform = rasterio.transform.from_origin(500_000, 5_300_000, 10, 10)
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=transform, **options) as file:
        file.write(values)
    return path


def expected(values):
    return np.moveaxis(values, 0, -1)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"photometric": "minisblack", "planarconfig": "separate"}, CUBE),
        ({"photometric": "minisblack", "planarconfig": "contig"}, expected(CUBE)),
        ({"photometric": "minisblack"}, CUBE),  # a page each
        ({"photometric": "minisblack", "compression": "zlib", "planarconfig": "separate"}, CUBE),
        ({"photometric": "minisblack", "tile": (16, 16), "planarconfig": "separate"}, CUBE),
        ({"bigtiff": True, "byteorder": ">", "photometric": "minisblack", "planarconfig": "separate"}, CUBE),
    ],
)
def test_planes_pixels_and_pages_give_the_same_bands(tmp_path, tifffile, options, values):
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    np.testing.assert_array_equal(read_bands(tmp_path / "a.tif", LAST, 13, "uint16"), expected(CUBE))
    np.testing.assert_array_equal(
        read_bands(tmp_path / "a.tif", LAST, 13, "uint16", [3, 2, 1]), expected(CUBE)[..., [3, 2, 1]]
    )


def test_three_and_four_samples_stay_what_they_are(tmp_path, tifffile):
    for count in (3, 4):
        tifffile.imwrite(tmp_path / "a.tif", expected(CUBE[:count]), photometric="rgb")
        assert open_bands(tmp_path / "a.tif").axis == LAST
        np.testing.assert_array_equal(
            read_bands(tmp_path / "a.tif", FIRST, count, "uint16"), expected(CUBE[:count])
        )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64"])
def test_one_band_of_any_type_is_read(tmp_path, tifffile, dtype):
    values = (CUBE[0] % 200).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_bands(tmp_path / "a.tif", LAST, 1, dtype)[..., 0], values)


def test_a_stack_in_depth_or_time_is_no_image(tmp_path, tifffile):
    tifffile.imwrite(tmp_path / "a.tif", CUBE, imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(ImagesError, match=r"along the axes ZYX"):
        open_bands(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", CUBE[:5], imagej=True, metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_bands(tmp_path / "b.tif", LAST, 5, "uint16"), expected(CUBE[:5]))


def test_orientation_is_applied(tmp_path, tifffile):
    tifffile.imwrite(tmp_path / "a.tif", CUBE[0], extratags=[(274, "H", 1, 6, True)])
    found = read_bands(tmp_path / "a.tif", LAST, 1, "uint16")[..., 0]
    np.testing.assert_array_equal(found, np.rot90(CUBE[0], -1))


def test_a_damaged_tiff_is_refused_with_a_reason(tmp_path, tifffile):
    tifffile.imwrite(tmp_path / "a.tif", CUBE, photometric="minisblack", planarconfig="separate")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImagesError, match=r"cannot be decoded"):
        read_bands(tmp_path / "a.tif", LAST, 13, "uint16")
    (tmp_path / "a.tif").write_bytes(content[:100])
    with pytest.raises(ImagesError, match=r"cannot be decoded"):
        open_bands(tmp_path / "a.tif")


@pytest.mark.parametrize("reader", ["tifffile", "rasterio"])
@pytest.mark.parametrize("options", [{}, {"compress": "deflate", "predictor": 2}, {"interleave": "pixel"}])
def test_geotiff_is_read_alike_by_both(tmp_path, monkeypatch, tifffile, rasterio, reader, options):
    path = geotiff(rasterio, tmp_path / "a.tif", CUBE, **options)
    monkeypatch.setitem(sys.modules, "rasterio" if reader == "tifffile" else "tifffile", None)
    np.testing.assert_array_equal(read_bands(path, LAST, 13, "uint16"), expected(CUBE))
    np.testing.assert_array_equal(read_bands(path, LAST, 13, "uint16", [12, 0]), expected(CUBE)[..., [12, 0]])


def test_rasterio_decodes_what_tifffile_has_no_codec_for(tmp_path, monkeypatch, tifffile, rasterio):
    path = geotiff(rasterio, tmp_path / "a.tif", CUBE, compress="lzw")
    calls = []

    def refuse(self, *arguments, **options):
        calls.append(1)
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", refuse)
    np.testing.assert_array_equal(read_bands(path, LAST, 13, "uint16"), expected(CUBE))
    assert calls
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ImagesError, match=r"requires the 'imagecodecs' package"):
        read_bands(path, LAST, 13, "uint16")


@pytest.mark.parametrize("reader", ["tifffile", "rasterio"])
def test_pixels_marked_as_without_data_are_refused_in_floating_point(
    tmp_path, monkeypatch, tifffile, rasterio, reader
):
    values = CUBE[:2].astype(np.float32)
    values[1, 3, 4] = -9999
    path = geotiff(rasterio, tmp_path / "a.tif", values, nodata=-9999)
    monkeypatch.setitem(sys.modules, "rasterio" if reader == "tifffile" else "tifffile", None)
    with pytest.raises(ImagesError, match=r"pixels without data \(marked -9999\)"):
        read_bands(path, LAST, 2, "float32")


def test_rasterio_alone_refuses_pages_rather_than_read_the_first(tmp_path, monkeypatch, tifffile, rasterio):
    tifffile.imwrite(tmp_path / "a.tif", CUBE, photometric="minisblack")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImagesError, match=r"13 pages; pip install tifffile"):
        open_bands(tmp_path / "a.tif")


def test_rasterio_follows_no_other_format(tmp_path, monkeypatch, rasterio):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "a.tif").write_text('<VRTDataset rasterXSize="64" rasterYSize="64"></VRTDataset>')
    with pytest.raises(ImagesError, match=r"cannot be decoded"):
        open_bands(tmp_path / "a.tif")


def test_a_folder_of_thirteen_bands_is_measured_as_a_network_of_three_or_thirteen_sees_it(
    tmp_path, tifffile, rasterio
):
    (tmp_path / "tiles").mkdir()
    for index in range(9):
        geotiff(rasterio, tmp_path / "tiles" / f"{index}.tif", np.roll(CUBE, index, 1))
    all_of_them = images.prepare(
        tmp_path / "tiles", rgb(32, channels=13), num_images=9, scale=10_000, cache=tmp_path / "cache"
    )
    assert (all_of_them.pixels.shape, all_of_them.pixels.dtype) == ((9, 32, 32, 13), np.float32)
    assert all_of_them.scaling == "uint16 / 10000"
    three = images.prepare(
        tmp_path / "tiles", rgb(32), num_images=9, bands=(4, 3, 2), scale=10_000, cache=tmp_path / "cache"
    )
    assert three.names == all_of_them.names
    np.testing.assert_array_equal(three.pixels, all_of_them.pixels[..., [3, 2, 1]])
    with pytest.raises(ImagesError, match=r"takes 3 channels, the files hold 13 bands.*--bands"):
        images.prepare(tmp_path / "tiles", rgb(32), num_images=9, cache=tmp_path / "cache")
