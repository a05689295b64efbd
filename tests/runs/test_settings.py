"""Settings: what moves their fingerprint, and how they come through JSON."""

import dataclasses
import json

import pytest

from dse_monitor.preprocessing import Preprocessing
from dse_monitor.runs.record import Evaluation, Settings, Source, evaluation_from_json, to_json

pytestmark = pytest.mark.fast

PLAIN = Settings(images="0123456789abcdef", num_images=2048)
OTHER = {
    "resize": (37, 146),
    "crop": (32, 128),
    "interpolation": "bilinear",
    "crop_mode": "squash",
    "channels": 13,
    "bands": (4, 3, 2),
    "scaling": "uint16 / 10000",
    "reading": "0123456789ab",
}


@pytest.mark.parametrize("name", OTHER)
def test_every_field_moves_the_fingerprint(name):
    assert dataclasses.replace(PLAIN, **{name: OTHER[name]}).fingerprint != PLAIN.fingerprint


def test_the_fingerprint_is_that_of_the_fields_there_were_at_first():
    assert PLAIN.fingerprint == "9a9507b8add7"


@pytest.mark.parametrize("changes", [{}, OTHER, {"mean": (0.5,), "std": (0.25,), "channels": 1}])
def test_settings_come_through_json(changes):
    settings = dataclasses.replace(PLAIN, **changes)
    evaluation = Evaluation(status="failed", source=Source(path="a.pth", mtime=1.0), settings=settings)
    text = json.dumps(to_json(evaluation), allow_nan=False)
    assert evaluation_from_json(json.loads(text)).settings == settings
    assert set(json.loads(text)["settings"]) >= set(changes)


def test_settings_say_what_was_done_to_the_images():
    how = Preprocessing(
        channels=1,
        image_size=(32, 128),
        resize=(40, 160),
        interpolation="lanczos",
        mean=(0.5,),
        std=(0.25,),
    )
    settings = dataclasses.replace(
        PLAIN, channels=1, crop=(32, 128), resize=(40, 160), interpolation="lanczos", mean=(0.5,), std=(0.25,)
    )
    assert settings.preprocessing == how
    assert PLAIN.preprocessing.covered == (256, 256)
