"""watch: what it says, and what it says of options."""

import json
import shutil

import pytest


def test_watch_once_says_a_line_for_each_checkpoint(watched):
    lines = watched.out.splitlines()
    assert all(len(line) <= 100 for line in lines)
    rows = [line for line in lines if line.split()[:1] in (["1"], ["2"], ["3"])]
    assert len(rows) == 3
    assert sum("checkpoint_0004.pth" in line for line in lines) == 1
    assert "● best" in watched.out


def test_watch_again_scores_nothing_twice(workplace, watch_again):
    ledger = workplace / "run" / "dse" / "records.jsonl"
    before = ledger.read_bytes()
    watch_again()
    facts = [json.loads(line)["kind"] for line in ledger.read_bytes()[len(before) :].splitlines()]
    assert facts
    assert "scored" not in facts


def test_pictures_that_changed_are_said_and_measured_anew_when_asked(workplace, in_process, tmp_path):
    from dse_monitor.runs import ledger
    from dse_monitor.scenes import write_folder

    def watch(*flags):
        done = in_process(*"watch run --once --plain --settle-seconds 0".split(), *flags, cwd=tmp_path)
        assert done.code == 0, done.out + done.err
        return " ".join(done.out.split()), ledger.read(tmp_path / "run" / "dse").evaluations

    write_folder(tmp_path / "images", count=16, size=64, seed=1)
    (tmp_path / "run").mkdir()
    first, second = (f"checkpoint_{epoch:04d}.pth" for epoch in (1, 2))
    shutil.copy(workplace / "run" / first, tmp_path / "run")
    watch("--images", "images", "--num-images", "16")
    for picture in (tmp_path / "images").iterdir():
        picture.unlink()
    write_folder(tmp_path / "images", count=16, size=64, seed=2)
    shutil.rmtree(tmp_path / "run" / "dse" / "images")
    shutil.copy(workplace / "run" / second, tmp_path / "run")
    said, evaluations = watch()
    assert "other pictures than before under the same names: from checkpoint_0002.pth on" in said
    assert len({e.settings.images for e in evaluations}) == len(evaluations) == 2
    said, evaluations = watch("--remeasure")
    assert "measured again where files are left" in said
    assert [e.source.path for e in evaluations] == [first, second, first]
    assert evaluations[2].settings == evaluations[1].settings


def test_best_names_a_file_that_exists(command, workplace, watched):
    path = command("best", workplace / "run", "--path-only").out
    assert path.endswith(".pth\n")
    assert (workplace / path.strip()).is_file()
    table = json.loads(command("best", workplace / "run", "--json").out)
    assert table["candidates"][0]["file"] == path.strip()


def test_a_test_alert_tries_every_sink_and_says_how_it_went(command, tmp_path):
    heard = tmp_path / "heard.json"
    keep = f"command:sh -c 'cat > {heard}'"
    ask = ("watch", tmp_path / "run", "--images", tmp_path, "--test-alert", "--alert", keep)
    done = command(*ask)
    assert (done.code, done.out.count("delivered")) == (0, 1)
    assert json.loads(heard.read_text())["kind"] == "test"
    done = command(*ask, "command:false")
    assert done.code == 3
    assert "✗ command:false#fcbcf1: ended with code 1" in done.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["run", "--every", "0"], "--every must be at least 1, got 0"),
        ([], "no run to watch"),
        (["run", "--num-images", "1"], "num_images must be at least 8, got 1"),
        (["run", "--alert", "pigeon"], "there is no alert sink 'pigeon'"),
        (["run", "--test-alert"], "--test-alert has nothing to try"),
    ],
)
def test_options_that_make_no_sense_are_one_line_and_code_2(command, flags, said):
    done = command("watch", *flags, "--images", "images")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"dse-monitor: {said}")


def test_the_watcher_gets_every_option(monkeypatch, command):
    from dse_monitor.cli import watch
    from dse_monitor.watch.options import WatchOptions

    asked = []
    monkeypatch.setattr(watch, "become", asked.append)
    flags = "--images i --device cpu cuda:1 --no-maps --rules.margin 0.3 --threads 3 --out o --json"
    command("watch", "a", "b", *flags.split(), "--batch", 64, "--alert", "log", "--link", "http://x")
    [options] = asked
    assert WatchOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert (options.devices, options.maps, options.rules.margin) == (("cpu", "cuda:1"), False, 0.3)
    assert (options.manners.threads, options.config.batch, options.form) == (3, 64, "json")
    assert [sink.name for sink in options.sinks] == ["log"]
