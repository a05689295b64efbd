"""A network's preprocessing: sizes that follow from others, and fields that have no meaning."""

import json

import pytest

from dse_monitor.preprocessing import Preprocessing, default_resize, pair, side

pytestmark = pytest.mark.fast

RGB = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


@pytest.mark.parametrize(
    ("fields", "covered"),
    [
        ({}, (256, 256)),
        ({"image_size": (518, 518)}, (592, 592)),
        ({"image_size": (32, 128)}, (37, 146)),
        ({"resize": (240, 300)}, (240, 300)),
        ({"image_size": (32, 128), "crop_mode": "squash"}, (32, 128)),
    ],
)
def test_the_picture_covers_what_its_centre_is_cut_out_of(fields, covered):
    assert Preprocessing(**RGB, **fields).covered == covered


def test_the_default_of_a_size_is_torchvisions_share():
    assert default_resize((224, 96)) == (256, 110)


@pytest.mark.parametrize(
    ("fields", "size", "resize"),
    [
        ({}, (96, 96), None),
        ({"resize": (248, 248)}, (112, 112), (124, 124)),
        ({"resize": (248, 248)}, (32, 128), (35, 142)),
        ({"resize": (224, 224)}, (96, 64), (96, 64)),
        ({"resize": (248, 248)}, None, (248, 248)),
    ],
)
def test_another_size_loses_as_large_a_share(fields, size, resize):
    how = Preprocessing(**RGB, **fields)
    other = how.at(size)
    assert (other.image_size, other.resize) == (size or (224, 224), resize)


@pytest.mark.parametrize(
    "fields", [{}, {"image_size": (32, 128), "resize": (40, 160), "crop_mode": "squash"}]
)
def test_preprocessing_comes_through_json(fields):
    how = Preprocessing(**RGB, **fields)
    assert Preprocessing.from_json(json.loads(json.dumps(how.to_json()))) == how


def test_a_size_is_kept_as_a_side_where_it_is_a_square():
    assert (side((224, 224)), side((32, 128))) == (224, (32, 128))
    assert (pair(224), pair([32, 128])) == ((224, 224), (32, 128))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 0}, r"channels is 0, expected a whole number from 1"),
        ({"channels": True}, r"channels is True"),
        ({"image_size": (0, 8)}, r"image_size is \(0, 8\), expected \(height, width\)"),
        ({"image_size": 224}, r"image_size is 224, expected \(height, width\)"),
        ({"resize": (256,)}, r"resize is \(256,\), expected \(height, width\)"),
        ({"resize": (256, 200)}, r"resize is \(256, 200\), expected at least the image_size \(224, 224\)"),
        ({"crop_mode": "centre"}, r"crop_mode is 'centre', expected one of center, center_floor, squash"),
        ({"interpolation": "cubic"}, r"interpolation is 'cubic', expected one of nearest, .*hamming"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\), expected 3 finite numbers, one for each channel"),
        ({"channels": 1, "mean": (0.5,), "std": ()}, r"std is \(\), expected 1 finite number, "),
        ({"std": (0.2, float("nan"), 0.2)}, r"std is .*expected 3 finite numbers"),
        ({"std": (0.2, 0.0, 0.2)}, r"std is \(0.2, 0.0, 0.2\), expected numbers above 0"),
    ],
)
def test_a_field_without_meaning_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{**RGB, **fields})
