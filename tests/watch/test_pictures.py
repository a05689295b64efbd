"""Held-out images that became other pictures under the same names."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from watch_fakes import FakeEvaluate, FakeFactory, FakeWorker, write_checkpoint

from dse_monitor.evaluation import fingerprints
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.runs import ledger
from dse_monitor.watch.console import Header, Notice
from dse_monitor.watch.run.pictures import Pictures
from dse_monitor.watch.workers.worker import _Evaluators

pytestmark = pytest.mark.fast


class OnPictures(FakeEvaluate):
    """Keeps pixels in the run's cache as the real one does: what lies there is not looked at again."""

    def __init__(self, config, place):
        super().__init__(config, place)
        pixels = Path(place.cache) / "pixels-1.rgb"
        if not pixels.exists():
            pixels.parent.mkdir(parents=True, exist_ok=True)
            pixels.write_bytes(b"")
            picture = (Path(config.images) / "a.png").read_bytes()
            fingerprints.write(pixels, 1, hashlib.sha256(picture).hexdigest())
        [self.images] = fingerprints.cached(Path(place.cache))

    def __call__(self, path, progress=None, *, name=None):
        made = super().__call__(path, progress, name=name)
        if made.settings is None:
            return made
        return dataclasses.replace(made, settings=dataclasses.replace(made.settings, images=self.images))


class Worker(FakeWorker):
    def __init__(self):
        super().__init__()
        self._evaluators = _Evaluators(FakeFactory(OnPictures))


@pytest.fixture
def run(tmp_path):
    """A run of two checkpoints; its images are below another folder."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"one")
    for number in range(2):
        checkpoint(tmp_path / "exp1", number)
    return tmp_path / "exp1"


def checkpoint(run, number):
    return write_checkpoint(run / f"checkpoint{number:04d}.pth", epoch=number + 1.0, value=number)


@pytest.fixture
def watch(run, tmp_path, watching):
    """Watches the run once; the monitor, and the paths measured."""

    def once(**options):
        config = EvaluationConfig(images=tmp_path / "images")
        made = watching(run, once=True, worker=Worker, config=config, **options)
        assert made.run() == 0
        return made, made.jobs

    return once


def change(run):
    """Other pictures under the same names, and a cache that is lost."""
    (run.parent / "images" / "a.png").write_bytes(b"two")
    shutil.rmtree(run / "dse" / "images")


def said(made):
    notices = [item.text for item in made.console.of(Notice) if "other pictures" in item.text]
    return notices, [(item.text, item.aside) for item in made.console.of(Header) if item.label == "pictures"]


def best(run):
    return json.loads((run / "dse" / "best.json").read_text())["measured"]


def test_scores_on_other_pictures_are_a_line_of_their_own_said_once(run, watch):
    watch()
    change(run)
    for number in (2, 3):
        checkpoint(run, number)
    made, measured = watch()
    assert measured == ["checkpoint0002.pth", "checkpoint0003.pth"]
    [notice], headers = said(made)
    assert notice.startswith("the held-out images are other pictures than before under the same names: from ")
    assert "--remeasure" in notice
    assert headers == []
    assert best(run) == 2
    made, measured = watch()
    assert measured == []
    text = "2 scored on other pictures under the same names, on a line of their own"
    assert said(made) == ([], [(text, "--remeasure measures them again")])


def test_the_run_is_measured_anew_when_asked(run, watch):
    watch()
    change(run)
    checkpoint(run, 2)
    watch()
    made, measured = watch(remeasure=True)
    assert measured == ["checkpoint0000.pth", "checkpoint0001.pth"]
    assert said(made)[1][0][1] == "measured again where files are left"
    assert best(run) == 3
    for options in ({}, {"remeasure": True}):
        made, measured = watch(**options)
        assert measured == []
        assert said(made) == ([], [])
    view = ledger.read(run / "dse")
    assert [len(view.evaluations), len(view.settings)] == [5, 2]


def test_it_is_measured_anew_though_no_checkpoint_is_new(run, watch):
    watch()
    change(run)
    assert watch()[1] == []  # nobody decoded the pictures: the curve is what it was
    assert best(run) == 2
    _, measured = watch(remeasure=True)
    assert measured == ["checkpoint0000.pth", "checkpoint0001.pth"]
    assert best(run) == 2
    assert len(ledger.read(run / "dse").evaluations) == 4


def test_a_lost_cache_of_the_same_pictures_doubles_nothing(run, watch):
    watch()
    shutil.rmtree(run / "dse" / "images")
    watch(remeasure=True)
    assert len(ledger.read(run / "dse").evaluations) == 2
    assert watch(remeasure=True)[1] == []


def test_another_name_of_a_checkpoint_is_measured_anew_with_it(run, watch):
    shutil.copy(run / "checkpoint0001.pth", run / "last.pth")
    watch()
    change(run)
    watch(remeasure=True)
    newest = ledger.read(run / "dse").evaluations[-1]
    assert {newest.source.path, *newest.source.aliases} == {"checkpoint0001.pth", "last.pth"}


def test_networks_that_see_images_otherwise_are_no_change_of_pictures(evaluation):
    small, large = (
        dataclasses.replace(evaluation().settings, images=images, crop=crop)
        for images, crop in (("a" * 16, 96), ("b" * 16, 224))
    )
    pictures = Pictures()
    for number, settings in enumerate((small, large, small)):
        pictures.learn(evaluation(f"{number}.pth", settings=settings))
    pictures.learn(evaluation("x.pth", status="failed", settings=None))
    assert pictures.others == 0
    pictures.learn(evaluation("3.pth", settings=dataclasses.replace(small, images="c" * 16)))
    assert pictures.others == 2
    pictures.learn(evaluation("0.pth", settings=dataclasses.replace(small, images="c" * 16)))
    assert pictures.others == 1


def test_pixels_without_their_file_or_a_damaged_one_are_no_images(tmp_path):
    for name, digest in (("pixels-1.rgb", "1" * 64), ("pixels-2.f32", "2" * 64), ("pixels-3.u8", "3" * 64)):
        (tmp_path / name).write_bytes(b"")
        fingerprints.write(tmp_path / name, 8, digest)
    (tmp_path / "pixels-2.f32").unlink()
    (tmp_path / "pixels-3.json").write_text("{")
    (tmp_path / "sample-1.json").write_text("{}")
    assert fingerprints.cached(tmp_path) == {"1" * 16}
    assert fingerprints.cached(tmp_path / "none") == frozenset()
