"""watch: what it says, and what it says of options."""

import json

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
