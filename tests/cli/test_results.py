"""best, status and export: what a watched run has come to."""

import json
import os
import threading

import pytest

pytestmark = pytest.mark.fast


def test_best_prints_a_table_and_what_to_take(command, old_run):
    heading, *rows, advice = command("best", old_run, "--top", 2).out.splitlines()
    assert heading.split()[:2] == ["epoch", "DSE"]
    assert len(rows) == 2
    assert advice.startswith("Take epoch ")


def test_best_without_a_file_to_take_ends_with_code_1(command, old_run):
    for file in [*old_run.glob("*.pth"), *(old_run / "dse").rglob("*.pth")]:
        file.unlink()
    assert command("best", old_run, "--path-only").code == 1
    assert "(file gone)" in command("best", old_run).out


def test_tables_come_from_the_ledger(command, old_run, tmp_path):
    header, *rows = command("export", old_run).out.splitlines()
    assert header.startswith("seq,status,path")
    assert command("export", old_run / "dse", "--csv", tmp_path / "t.csv").out == ""
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1 + len(rows)
    objects = command("export", old_run, "--json", "-").out.splitlines()
    assert [json.loads(line)["seq"] for line in objects] == [int(row.split(",")[0]) for row in rows]


def test_status_is_of_one_run_or_of_all_below(command, old_run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "scored" in command("status", old_run).out
    assert json.loads(command("status", "--json").out)
    monkeypatch.chdir(old_run / "dse" / "media")
    assert command("status").code == 1


@pytest.mark.parametrize("name", ["best", "status", "export", "silence"])
def test_a_run_that_was_not_watched_is_one_line_and_code_2(command, tmp_path, name):
    done = command(name, tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"dse-monitor: {tmp_path} was not watched")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("count", ["0", "-1"])
def test_best_of_none_is_refused(command, old_run, count):
    done = command("best", old_run, "--top", count)
    assert (done.code, done.err) == (2, f"dse-monitor: --top must be at least 1, got {count}\n")


def test_a_table_goes_through_links_and_into_pipes_and_replaces_neither(command, old_run, tmp_path):
    """Whoever is root would otherwise turn a device into a file."""
    expected = command("export", old_run).out
    (tmp_path / "real.csv").write_text("")
    (tmp_path / "link.csv").symlink_to("real.csv")
    command("export", old_run, "--csv", tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == expected
    os.mkfifo(tmp_path / "pipe")
    heard = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    command("export", old_run, "--csv", tmp_path / "pipe")
    reader.join(timeout=30)
    assert heard == [expected]
    assert (tmp_path / "pipe").is_fifo()
