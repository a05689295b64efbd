"""`dse-monitor runs`: what would be watched, and why, without touching anything."""

import json

import pytest

pytestmark = pytest.mark.fast


@pytest.fixture
def logs(tmp_path):
    for name in (
        "version_0/checkpoints/epoch=0-step=10.ckpt",
        "version_1/hparams.yaml",
        "version_1/checkpoints/epoch=0-step=10.ckpt",
        "version_1/checkpoints/epoch=1-step=20.ckpt",
    ):
        path = tmp_path / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "logs"


def test_each_run_is_listed_with_its_reason_and_nothing_is_written(command, logs):
    before = sorted(logs.rglob("*"))
    done = command("runs", logs)
    assert done.code == 0
    assert done.out.splitlines() == [
        f"2 runs in {logs}",
        "  version_0",
        "      1 checkpoint such as checkpoints/epoch=0-step=10.ckpt, named as by Lightning, lightly or "
        "lightly-train",
        "      because: its name version_0",
        "  version_1",
        "      2 checkpoints such as checkpoints/epoch=0-step=10.ckpt, named as by Lightning, lightly or "
        "lightly-train",
        "      because: hparams.yaml in it",
    ]
    assert sorted(logs.rglob("*")) == before


def test_json_has_an_object_per_run(command, logs):
    lines = [json.loads(line) for line in command("runs", logs, "--json", "--run", "*_1").out.splitlines()]
    (run,) = lines
    assert (run["run"], run["checkpoints"], run["reason"]) == (
        str(logs / "version_1"),
        2,
        "hparams.yaml in it",
    )
    assert run["unlooked"] == ""


def test_the_user_may_join_and_divide(command, logs):
    assert "3 checkpoints such as" in command("runs", logs, "--as-one").out
    assert f"2 runs in {logs}" in command("runs", logs, "--as-many").out


def test_nothing_there_ends_with_1_and_no_folder_with_2(command, logs):
    (logs / "empty").mkdir()
    done = command("runs", logs / "empty")
    assert (done.code, done.out) == (1, f"no runs in {logs / 'empty'}\n")
    assert command("runs", logs / "nothing").code == 2
    assert "contradict" in command("runs", logs, "--as-one", "--as-many").err


def test_scoring_a_folder_of_several_runs_names_them(command, logs):
    done = command("score", logs, "--images", logs)
    assert done.code == 2
    assert f"{logs} holds 2 runs; score one of them, such as {logs / 'version_0'}" in done.err
