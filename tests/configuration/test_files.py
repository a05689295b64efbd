"""Configuration files: what may stand there, and what is said of everything else."""

from pathlib import Path

import pytest

from dse_monitor.configuration import files
from dse_monitor.errors import ConfigurationError
from dse_monitor.flags.table import options
from dse_monitor.watch.options import WatchOptions

pytestmark = pytest.mark.fast

TABLE = options(WatchOptions)


@pytest.fixture
def written(tmp_path):
    """Writes a configuration file of these lines below [watch]; its path."""

    def write(*lines, head="[watch]"):
        path = tmp_path / files.NAME
        path.write_text("\n".join([head, *lines]))
        return path

    return write


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ('images = "/data/held-out"', "images", Path("/data/held-out")),
        ('images = "~/held-out"', "images", Path("~/held-out").expanduser()),
        ("num-images = 256", "num-images", 256),
        ("num_images = 256", "num-images", 256),
        ("gpu-share = 1", "gpu-share", 1.0),
        ("until-epoch = 2.5", "until-epoch", 2.5),
        ('device = "cuda:1"', "device", ("cuda:1",)),
        ('device = ["cuda:0", "cuda:1"]', "device", ("cuda:0", "cuda:1")),
        ("mean = [0.5, 1, 0]", "mean", (0.5, 1.0, 0.0)),
        ('layer = "last"', "layer", "last"),
        ("layer = 3", "layer", 3),
        ('interpolation = "bicubic"', "interpolation", "bicubic"),
        ('unit = "step"', "unit", "step"),
        ("image-size = 96", "image-size", (96, 96)),
        ('image-size = "32x128"', "image-size", (32, 128)),
        ("image-size = [32, 128]", "image-size", (32, 128)),
        ('bands = "4,3,2"', "bands", (4, 3, 2)),
        ("bands = [4, 3, 2]", "bands", (4, 3, 2)),
        ("maps = false", "maps", False),
        ("no-maps = true", "maps", False),
        ("rules.margin = 0.5", "rules.margin", 0.5),
        ("[watch.rules]\nearly-best = 3", "rules.early-best", 3),
    ],
)
def test_any_option_stands_under_its_flags_name(written, line, name, value):
    assert files.read(written(line), TABLE) == {name: value}


def test_relative_paths_begin_at_the_file(written, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    found = files.read(written('images = "held-out"', 'out = "../dse"'), TABLE)
    assert found == {"images": tmp_path / "held-out", "out": tmp_path / "../dse"}


def test_a_network_in_a_file_beside_the_configuration_is_found_there(written, tmp_path):
    (tmp_path / "mine.py").write_text("")
    assert files.read(written('network = "mine.py:build"'), TABLE)["network"] == f"{tmp_path}/mine.py:build"
    assert files.read(written('network = "mine:build"'), TABLE)["network"] == "mine:build"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("image = 3", "there is no option image in [watch]; did you mean images?"),
        ("rules.magin = 3.0", "there is no option rules.magin in [watch]; did you mean rules.margin?"),
        ("zzz = 3", "there is no option zzz in [watch]; `dse-monitor watch --help` lists the options"),
        ("runs = 3", "there is no option runs in [watch]"),
        ("num-images = true", "num-images in [watch]: expected a whole number, found true"),
        ('num-images = "8"', "num-images in [watch]: expected a whole number, found '8'"),
        ("images = 3", "images in [watch]: expected a path, found 3"),
        ("maps = 0", "maps in [watch]: expected true or false, found 0"),
        ("device = [1]", "device in [watch]: expected text, found 1"),
        ('unit = "hour"', """unit in [watch]: expected "epoch" or "step", found 'hour'"""),
        ('bands = "r,g"', "bands in [watch]: 'r,g' are no bands"),
        ("since = 2026-01-31", "since in [watch]: expected text, found"),
        ("maps = true\nno-maps = true", "maps stands in [watch] twice"),
        ("maps =", "is no TOML: "),
        ("[score]", "score stands outside of [watch]"),
    ],
)
def test_mistakes_name_the_file_and_the_way_out(written, line, said):
    path = written(line)
    with pytest.raises(ConfigurationError) as error:
        files.read(path, TABLE)
    assert str(path) in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [('images = "x"', "images stands outside of [watch]"), ("watch = 1", "watch is no table")],
)
def test_options_outside_of_the_table_are_refused(written, line, said):
    with pytest.raises(ConfigurationError, match=said.replace("[", r"\[")):
        files.read(written(line, head=""), TABLE)


@pytest.mark.parametrize("line", ['network = "mine.py:build"', 'alert = ["log", "command:notify"]'])
def test_code_to_run_is_taken_from_files_of_ones_own_alone(written, line):
    path = written(line)
    path.chmod(0o644)
    assert files.read(path, TABLE)
    path.chmod(0o646)
    with pytest.raises(ConfigurationError, match="another user may write this file"):
        files.read(path, TABLE)
    written('alert = ["log"]').chmod(0o646)
    assert files.read(path, TABLE) == {"alert": ("log",)}


def test_the_nearest_file_comes_first_and_the_users_own_last(tmp_path):
    run, home = tmp_path / "a" / "b" / "run", tmp_path / "home"
    for folder in (run, tmp_path / "a"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / files.NAME).write_text("")
    (home / "dse-monitor").mkdir(parents=True)
    (home / "dse-monitor" / "config.toml").write_text("")
    found = list(files.files(run, {"XDG_CONFIG_HOME": str(home)}))
    assert found == [run / files.NAME, tmp_path / "a" / files.NAME, home / "dse-monitor" / "config.toml"]


def test_without_an_absolute_variable_the_users_file_is_in_the_usual_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for environment in ({}, {"XDG_CONFIG_HOME": "relative"}):
        assert files.user_file(environment) == tmp_path / ".config" / "dse-monitor" / "config.toml"
