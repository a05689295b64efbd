"""Options that the command line leaves out: which of several sources holds."""

import json
import socket
from pathlib import Path

import pytest

from dse_monitor.configuration.sources import BEFORE, settings_for
from dse_monitor.errors import ConfigurationError
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.flags.table import options
from dse_monitor.runs import ledger
from dse_monitor.watch.options import WatchOptions

pytestmark = pytest.mark.fast

TABLE = options(WatchOptions)


@pytest.fixture
def found(tmp_path, monkeypatch):
    """What is found for runs below the folder, with no configuration of the user's own."""

    def find(*runs, typed=None, survey=(), **variables):
        folders = [tmp_path / run for run in runs]
        environment = {"XDG_CONFIG_HOME": str(tmp_path / "home"), **variables}
        looked = [(tmp_path / folder, name) for folder, name in survey]
        return settings_for(folders, TABLE, typed or {}, lambda folder: looked, environment)

    return find


@pytest.fixture
def watched(tmp_path):
    """Leaves what a watcher of a run leaves in its ledger."""

    def leave(run="exp1", *, host=None, asked=None, probe=None, out=None, **measured):
        home = tmp_path / (out or f"{run}/dse")
        config = EvaluationConfig(**{"images": "/data/before", **measured}).to_json()
        data = {"host": host or socket.gethostname(), "request": "x", "probe": {**config, **(probe or {})}}
        book = ledger.Ledger.open(home)
        book.append("watch", {**data, "asked": asked or {}})
        book.close()

    return leave


@pytest.fixture
def configured(tmp_path):
    """Writes a configuration file of these options."""

    def write(place, **options_there):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{name} = {json.dumps(value)}" for name, value in options_there.items()]
        path.write_text("\n".join(["[watch]", *lines]))
        return str(path)

    return write


def test_sources_count_in_one_order(found, watched, configured, tmp_path):
    assert found("exp1").found == {}
    by_variable = found("exp1", DSE_MONITOR_IMAGES="/data/variable").found["images"]
    own = configured("home/dse-monitor/config.toml", images="/data/own")
    above = configured("dse-monitor.toml", images="/data/above")
    beside = configured("exp1/dse-monitor.toml", images="/data/beside")
    watched()
    settings = found("exp1", DSE_MONITOR_IMAGES="/data/variable").found["images"]
    assert [(str(s.value), s.source) for s in settings] == [
        ("/data/before", BEFORE),
        ("/data/beside", beside),
        ("/data/above", above),
        ("/data/own", own),
        ("/data/variable", "the variable DSE_MONITOR_IMAGES"),
    ]
    assert by_variable == settings[-1:]


def test_what_is_typed_is_not_looked_for(found, watched, configured):
    watched()
    configured("dse-monitor.toml", images="/data/above", device="cpu")
    settings = found("exp1", typed={"images": Path("x"), "device": ("cuda",)})
    assert settings.found == {}


def test_a_run_is_measured_as_before_as_a_whole(found, watched, configured):
    watched(num_images=64, image_size=96, mean=(0.5, 0.5, 0.5), bands=(1, 2, 3))
    configured("dse-monitor.toml", **{"num-images": 512, "seed": 7, "keep-best": 2})
    values = found("exp1").values()
    expected = {"num-images": 64, "image-size": (96, 96), "bands": (1, 2, 3), "seed": 0, "keep-best": 2}
    assert {name: values[name] for name in expected} == expected
    assert found("exp1", typed={"num-images": 8}).values()["image-size"] == (96, 96)
    assert found("exp1", typed={"images": Path("x")}).values() == {
        "num-images": 512,
        "seed": 7,
        "keep-best": 2,
    }


def test_what_was_asked_of_the_watcher_before_counts_one_by_one(found, watched, configured):
    watched(asked={"device": ["cuda:1"], "alert": ["log", "webhook:env:CHAT"]})
    configured("dse-monitor.toml", link="http://charts", device="cpu")
    values = found("exp1", typed={"images": Path("x")}).values()
    assert values["device"] == ("cuda:1",)
    assert values["alert"] == ("log", "webhook:env:CHAT")
    assert values["link"] == "http://charts"


def test_a_device_of_another_machine_is_not_taken(found, watched):
    watched(host="elsewhere", asked={"device": ["cuda:1"], "link": "http://charts"})
    values = found("exp1").values()
    assert "device" not in values
    assert values["link"] == "http://charts"


def test_records_never_say_what_code_is_run(found, watched):
    watched(asked={"alert": ["command:notify", "log"]}, probe={"network": "mine.py:build"})
    with pytest.raises(ConfigurationError, match=r"network of mine\.py:build.*name it again with --network"):
        found("exp1")
    settings = found("exp1", typed={"network": "mine.py:build"})
    assert settings.values()["alert"] == ("log",)
    assert settings.notes == [("without alert command:notify", "records, which do not say what is run")]


def test_runs_below_a_folder_count_as_one_where_they_agree(found, watched):
    watched("runs/a", asked={"link": "http://a"})
    watched("runs/b", asked={"link": "http://b"})
    below = [("runs/a", ""), ("runs/b", "")]
    values = found("runs", survey=below).values()
    assert values["images"] == Path("/data/before")
    assert "link" not in values
    watched("runs/b", images="/data/other")
    said = r"--images is /data/before by .*runs/a, but /data/other by .*runs/b"
    with pytest.raises(ConfigurationError, match=said):
        found("runs", survey=below)


def test_several_runs_are_watched_alike_or_not_at_all(found, watched, configured):
    watched("a")
    assert found("a", "b").values()["images"] == Path("/data/before")
    configured("b/dse-monitor.toml", images="/data/b")
    with pytest.raises(ConfigurationError, match=r"--images is /data/before by .* but /data/b by"):
        found("a", "b")


def test_an_output_folder_elsewhere_is_asked_where_it_is(found, watched, tmp_path):
    watched(out="results")
    assert found("exp1").found == {}
    assert found("exp1", typed={"out": tmp_path / "results"}).values()["images"] == Path("/data/before")


@pytest.mark.parametrize("probe", [{"num_images": "many"}, {"num_images": 1}, {"images": None}])
def test_records_that_make_no_sense_say_nothing(found, watched, probe):
    watched(probe=probe)
    assert "images" not in found("exp1").found
