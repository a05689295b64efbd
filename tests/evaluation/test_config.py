"""What is asked for: on the command line, in JSON, and as one digest."""

import json

import pytest

from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.flags.parse import parse

pytestmark = pytest.mark.fast


def asked(*arguments):
    return parse(EvaluationConfig, ["--images", "/data", *arguments], prog="x")


@pytest.mark.parametrize(
    ("word", "size"), [("224", (224, 224)), ("32x128", (32, 128)), ("128x32", (128, 32))]
)
def test_a_size_is_a_side_or_height_by_width(word, size):
    assert asked("--image-size", word).image_size == size
    assert (
        EvaluationConfig(images="/data", image_size=int(word) if word.isdigit() else size).image_size == size
    )


@pytest.mark.parametrize("word", ["32y128", "x128", "32x", "32x128x3", "-3", "1e3"])
def test_a_word_that_is_no_size_is_refused(word, capsys):
    with pytest.raises(SystemExit) as ended:
        asked("--image-size", word)
    assert ended.value.code == 2
    assert "--image-size" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["15", "16x15", "0x128"])
def test_a_size_without_detail_is_refused(word):
    with pytest.raises(ValueError, match="image_size must be at least 16"):
        asked("--image-size", word)


def test_bands_and_scale_are_read_from_the_command_line():
    config = asked("--bands", "4,3,2", "--scale", "10000", "--preview-bands", "3,2,1")
    assert (config.bands, config.scale, config.preview_bands) == ((4, 3, 2), 10_000, (3, 2, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bands": (0, 1, 2)}, "bands must be at least 1"),
        ({"preview_bands": (1, 2)}, "preview_bands must be three numbers, got 2"),
        ({"scale": 0.0}, "scale must be a number above 0"),
        ({"scale": float("inf")}, "scale must be a number above 0"),
    ],
)
def test_senseless_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(images="/data", **fields)


@pytest.mark.parametrize(
    "fields", [{}, {"image_size": 224}, {"image_size": (32, 128), "bands": (4, 3, 2), "scale": 2.5}]
)
def test_json_brings_the_same_config_back(fields):
    config = EvaluationConfig(images="/data", **fields)
    assert EvaluationConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_square_is_a_number_in_json_as_it_always_was():
    assert EvaluationConfig(images="/data", image_size=224).to_json()["image_size"] == 224
    assert EvaluationConfig(images="/data", image_size=(32, 128)).to_json()["image_size"] == [32, 128]


def test_digests_of_earlier_requests_stay_and_new_fields_move_them():
    config = EvaluationConfig(images="/data", image_size=224)
    assert config.request == "553df1dda73d"  # of the version that knew squares alone
    for changes in ({"bands": (1, 2, 3)}, {"scale": 2.0}, {"image_size": (224, 225)}):
        assert EvaluationConfig(images="/data", **{"image_size": 224, **changes}).request != config.request
    shown = EvaluationConfig(images="/data", image_size=224, preview_bands=(1, 2, 3))
    assert shown.request == config.request  # changes no number
